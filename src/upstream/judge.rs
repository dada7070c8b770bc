//! Judges the chain that a bank presents: the TLS library first, with roots and revocation lists, then the pins. Adds
//! conditions and takes none away, and finds words where the library has numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::pin::Pinning;
use super::trust::Lists;
use super::unverifiable::Shown;
use super::{Trust, TrustError};
use crate::identity::certificate::Certificate;

/// The verifier of one upstream.
#[derive(Debug)]
pub(super) struct Judge {
    library: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    /// `None` without pins: the path is not looked for twice.
    pinning: Option<Pinning>,
    lists_expiry: Option<SystemTime>,
    /// Until when what has passed stands, in seconds since 1970: the first end of a certificate that was presented. 0:
    /// nothing has passed yet.
    stands_until: AtomicU64,
}

impl Judge {
    /// Reads what `trust` names, as of `now`.
    pub(super) fn new(trust: &Trust, provider: &Arc<CryptoProvider>, now: SystemTime) -> Result<Self, TrustError> {
        let (roots, lists) = (trust.roots.load()?, Lists::load(&trust.lists, now)?);
        let library = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .with_crls(lists.der)
            .enforce_revocation_expiration()
            .build()
            .expect("there are roots, and each list has been parsed");
        let lists_expiry = lists.expiry;
        let pinning = (!trust.pins.is_empty()).then(|| Pinning {
            pins: trust.pins.clone(),
            roots: Arc::clone(&roots),
            lists: lists.parsed,
            algorithms: provider.signature_verification_algorithms.all,
        });
        Ok(Self { library, roots, pinning, lists_expiry, stands_until: AtomicU64::new(0) })
    }

    /// From when on nothing passes any more; `None` without revocation lists.
    pub(super) fn lists_expiry(&self) -> Option<SystemTime> {
        self.lists_expiry
    }

    /// Whether all that has passed would pass still, as far as certificates and lists have ends.
    pub(super) fn stands(&self, now: UnixTime) -> bool {
        let lists = self.lists_expiry.map_or(u64::MAX, seconds);
        now.as_secs() <= self.stands_until.load(Ordering::Relaxed) && now.as_secs() < lists
    }

    /// Something has passed. Banks have several servers, whose certificates need not end together: the first end
    /// counts, until it is over.
    fn passes(&self, certificates: impl Iterator<Item = SystemTime>, now: UnixTime) {
        let end = certificates.map(seconds).min().unwrap_or(0);
        let before = self.stands_until.load(Ordering::Relaxed);
        let first = if before < now.as_secs() { end } else { end.min(before) };
        self.stands_until.store(first, Ordering::Relaxed);
    }

    /// A refusal of the library in words, or as it was.
    fn in_words(&self, error: Error, certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Error {
        let Error::InvalidCertificate(reason) = &error else { return error };
        Shown::new(certificate, others, &self.roots).explain(reason).map_or(error, refusal)
    }

    /// The same of a signature in the handshake.
    fn handshake_in_words(&self, error: Error, certificate: &CertificateDer<'_>) -> Error {
        let Error::InvalidCertificate(reason) = &error else { return error };
        Shown::new(certificate, &[], &self.roots).explain_handshake(reason).map_or(error, refusal)
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.library.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let verified = verified.map_err(|error| self.in_words(error, end_entity, intermediates))?;
        if let Some(pinning) = &self.pinning {
            pinning.check(end_entity, intermediates, now).map_err(refusal)?;
        }
        let presented = [end_entity].into_iter().chain(intermediates);
        // One that cannot be read was not looked at by the library either.
        let ends = presented.filter_map(|der| Certificate::from_der(der.clone().into_owned()).ok());
        self.passes(ends.map(|certificate| certificate.not_after()), now);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.library.verify_tls12_signature(message, certificate, signature);
        verified.map_err(|error| self.handshake_in_words(error, certificate))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.library.verify_tls13_signature(message, certificate, signature);
        verified.map_err(|error| self.handshake_in_words(error, certificate))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.library.supported_verify_schemes()
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A verdict of ours on its way through the library.
fn refusal(verdict: impl std::error::Error + Send + Sync + 'static) -> Error {
    CertificateError::Other(OtherError(Arc::new(verdict))).into()
}

/// A verdict of ours that came through the library.
pub(super) fn verdict<T: std::error::Error + Clone + 'static>(error: &Error) -> Option<T> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(verdict))) => verdict.downcast_ref::<T>().cloned(),
        _ => None,
    }
}
