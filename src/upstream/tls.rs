//! The TLS side of one upstream: an identity's resolver and this upstream's trust. TLS 1.2 and 1.3, ring named
//! explicitly; ALPN offers HTTP/1.1 alone, because `host` is signed and nobody has seen these banks' HTTP/2.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use super::Trust;
use super::question::Attentive;
use super::witness::Witness;
use crate::identity::pem;

/// The configuration of one generation. Never reused for another identity: its resumption tickets would carry the old
/// certificate on.
pub(super) struct Tls {
    connector: TlsConnector,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Tls {
    pub(super) fn new(trust: &Trust, resolver: Arc<dyn ResolvesClientCert>) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(trust)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier = verifier.expect("there are roots, and no revocation lists");
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("ring has suites for both versions")
            .with_webpki_verifier(Arc::clone(&verifier))
            .with_client_cert_resolver(Arc::new(Attentive(resolver)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), verifier })
    }

    pub(super) fn connector(&self) -> &TlsConnector {
        &self.connector
    }

    /// The same configuration, watched, for one whole handshake.
    pub(super) fn watched(&self) -> (TlsConnector, Arc<Witness>) {
        let witness = Witness::new(Arc::clone(&self.verifier) as _);
        let mut config = ClientConfig::clone(self.connector.config());
        config.resumption = Resumption::disabled();
        config.dangerous().set_certificate_verifier(Arc::clone(&witness) as _);
        (TlsConnector::from(Arc::new(config)), witness)
    }
}

fn roots(trust: &Trust) -> Result<RootCertStore, TrustError> {
    match trust {
        Trust::System => system_roots(),
        Trust::File(path) => {
            let certificates = pem::read_chain(path).map_err(TrustError::Pem)?;
            store(certificates).ok_or_else(|| TrustError::NoAnchor(path.clone()))
        }
    }
}

fn system_roots() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    store(found.certs).ok_or_else(|| TrustError::NoSystemRoots(found.errors.into_iter().next()))
}

/// `None` without a single usable certificate. Operating systems ship roots that no library reads: those are left out.
fn store(certificates: Vec<CertificateDer<'static>>) -> Option<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    (!store.is_empty()).then_some(store)
}

/// Why a bank's certificates cannot be judged.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The PEM file.
    #[error(transparent)]
    Pem(pem::Error),
    /// A file without a certificate that can be a trust anchor.
    #[error("{}: none of its certificates can be a trust anchor", .0.display())]
    NoAnchor(PathBuf),
    /// The operating system has no roots.
    #[error("the operating system has no trusted certificates")]
    NoSystemRoots(#[source] Option<rustls_native_certs::Error>),
}

impl TrustError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Pem(error) => error.reason.hint(),
            Self::NoAnchor(_) => "give the certificates of the authority that issued the bank's certificate",
            Self::NoSystemRoots(_) => {
                "install the package ca-certificates, set SSL_CERT_FILE, or name a PEM file in `trust`"
            }
        }
    }
}
