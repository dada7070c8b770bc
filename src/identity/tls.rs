//! The rustls client-certificate resolver of one identity. A new identity means a new resolver: rustls keys its
//! resumption on the resolver's address, so a swapped certificate in an old resolver would live on in tickets.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};

use super::Reason;

/// Presents one QWAC to whoever asks.
#[derive(Debug)]
pub(super) struct ClientIdentity(Arc<CertifiedKey>);

impl ClientIdentity {
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, Reason> {
        match CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()) {
            Ok(certified) => Ok(Self(Arc::new(certified))),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(Reason::Mismatch),
            Err(error) => Err(Reason::Tls(error)),
        }
    }
}

impl ResolvesClientCert for ClientIdentity {
    /// The bank's list of acceptable issuers is a hint that some banks fill wrongly: the one certificate that we
    /// have is presented whatever it says, and the bank decides.
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
