//! Trusted certificate authorities.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// The authorities that may vouch for a provider. By default Mozilla's, which are built in, so that the binary needs no
/// certificates from the system.
#[derive(Debug, Clone)]
pub struct Trust(Arc<RootCertStore>);

/// A CA file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("UPSTREAM_CA_FILE {path} cannot be used: {why}")]
pub struct InvalidCaFile {
    path: PathBuf,
    why: String,
}

impl Default for Trust {
    fn default() -> Self {
        Self(Arc::new(mozilla()))
    }
}

impl Trust {
    /// Mozilla's authorities, and the ones in a PEM file: a private CA, or the CA of a TLS-inspecting proxy.
    ///
    /// # Errors
    /// [`InvalidCaFile`]: it cannot be read, or one of its certificates is invalid, or it holds none.
    pub fn with_file(path: &Path) -> Result<Self, InvalidCaFile> {
        let invalid = |why: String| InvalidCaFile { path: path.to_owned(), why };
        let mut roots = mozilla();
        let known = roots.len();
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| invalid(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
            roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
        }
        if roots.len() == known {
            return Err(invalid("it holds no certificate".to_owned()));
        }
        Ok(Self(Arc::new(roots)))
    }

    /// The TLS configuration for upstream connections.
    pub(super) fn client_config(&self) -> ClientConfig {
        ClientConfig::builder().with_root_certificates(self.0.clone()).with_no_client_auth()
    }
}

fn mozilla() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}
