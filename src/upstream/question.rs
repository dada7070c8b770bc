//! What a bank asks of us in a handshake: whether it wants our certificate, and whose certificates it says it accepts.
//! rustls tells that to the certificate resolver alone, which knows of no connection.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

/// A bank's request for our certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The authorities whose certificates the bank accepts, each a DER-encoded name. A hint: some banks fill it
    /// wrongly, some leave it empty.
    pub issuers: Vec<Vec<u8>>,
    /// What it was given: our chain, leaf first.
    pub presented: Vec<CertificateDer<'static>>,
}

tokio::task_local! {
    /// Of the handshake that is being polled.
    static ASKED: RefCell<Option<Question>>;
}

/// Runs a handshake to its end; tells what the bank asked in it. `None` also where it asked an earlier connection
/// and this one resumes that session.
pub(super) async fn heard<T>(handshake: impl Future<Output = T>) -> (T, Option<Question>) {
    let listened = async { (handshake.await, ASKED.with(RefCell::take)) };
    ASKED.scope(RefCell::default(), listened).await
}

/// A resolver that is listened to. Answers as the one inside does. One per configuration and never one per connection:
/// rustls resumes a session only with the resolver that it began with.
#[derive(Debug)]
pub(super) struct Attentive(pub(super) Arc<dyn ResolvesClientCert>);

impl ResolvesClientCert for Attentive {
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let answer = self.0.resolve(issuers, schemes);
        let question = Question {
            issuers: issuers.iter().map(|name| name.to_vec()).collect(),
            presented: answer.iter().flat_map(|certified| certified.cert.iter().cloned()).collect(),
        };
        // Nobody listens where a handshake runs outside of `heard`.
        let _ = ASKED.try_with(|asked| asked.replace(Some(question)));
        answer
    }

    fn only_raw_public_keys(&self) -> bool {
        self.0.only_raw_public_keys()
    }

    fn has_certs(&self) -> bool {
        self.0.has_certs()
    }
}
