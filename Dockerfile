# Builds the gateway, then leaves everything but the binary behind.
# The recorded profile fits this very compiler (docs/PERFORMANCE.md).
FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive the build, so that a changed source file does not rebuild every dependency.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    mkdir -p /out/data \
    && cargo build --release --locked --bin nexusgate \
    # The line tables are three quarters of it, and only profilers read them.
    && strip --strip-debug -o /out/nexusgate target/release/nexusgate

# No shell, no package manager; CA certificates and a user (65532) that owns nothing but /data.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG COMMIT_SHA=""
COPY --from=build /out/nexusgate /usr/local/bin/nexusgate
COPY --from=build --chown=65532:65532 /out/data /data
ENV COMMIT_SHA=$COMMIT_SHA \
    DATABASE_URL=sqlite:///data/nexusgate.db \
    DATA_DIR=/data/journal \
    LOG_FORMAT=json
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/usr/local/bin/nexusgate", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/nexusgate"]
CMD ["serve"]
