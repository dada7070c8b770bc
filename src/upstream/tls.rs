//! The TLS side of one upstream: an identity's resolver and this upstream's trust. TLS 1.2 and 1.3, ring named
//! explicitly; ALPN offers HTTP/1.1 alone, because `host` is signed and nobody has seen these banks' HTTP/2.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use tokio_rustls::TlsConnector;

use super::judge::Judge;
use super::question::Attentive;
use super::sessions::Sessions;
use super::witness::Witness;

/// The configuration of one generation. Never reused for another identity or another trust: its resumption tickets
/// would carry the old certificate on. A resumed session has no chain to judge, but comes from a handshake that this
/// same configuration has judged, pins and revocation lists included, and ends with them.
pub(super) struct Tls {
    connector: TlsConnector,
    judge: Arc<Judge>,
}

impl Tls {
    pub(super) fn new(judge: Judge, resolver: Arc<dyn ResolvesClientCert>) -> Self {
        Self::of(Arc::new(judge), resolver)
    }

    /// The same trust for another identity: nothing else is shared with it.
    pub(super) fn renewed(&self, resolver: Arc<dyn ResolvesClientCert>) -> Self {
        Self::of(Arc::clone(&self.judge), resolver)
    }

    fn of(judge: Arc<Judge>, resolver: Arc<dyn ResolvesClientCert>) -> Self {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("ring has suites for both versions")
            // What the library calls dangerous: ours begins with the library's own verifier.
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&judge) as _)
            .with_client_cert_resolver(Arc::new(Attentive(resolver)));
        let sessions = Sessions::new(Arc::clone(&judge));
        config.resumption = Resumption::store(Arc::new(sessions));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { connector: TlsConnector::from(Arc::new(config)), judge }
    }

    pub(super) fn connector(&self) -> &TlsConnector {
        &self.connector
    }

    pub(super) fn judge(&self) -> &Judge {
        &self.judge
    }

    /// The same configuration, watched, for one whole handshake.
    pub(super) fn watched(&self) -> (TlsConnector, Arc<Witness>) {
        let witness = Witness::new(Arc::clone(&self.judge) as _);
        let mut config = ClientConfig::clone(self.connector.config());
        config.resumption = Resumption::disabled();
        config.dangerous().set_certificate_verifier(Arc::clone(&witness) as _);
        (TlsConnector::from(Arc::new(config)), witness)
    }
}

/// What does the cryptography of TLS.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
