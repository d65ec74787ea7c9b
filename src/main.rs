//! The `nexusgate` command.

use std::process::ExitCode;

/// Small allocations come and go with every request, and what a request leaves to its log another thread gives back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    nexusgate::cli::run(std::env::args_os())
}
