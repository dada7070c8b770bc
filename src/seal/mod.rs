//! Seals requests: bytes in, headers out. Pure: no I/O, and the clock is an argument.
//!
//! A seal is the QSealC's signature over what the dialect names: the target, the `Date`, the body's `Digest`.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{DATE, HeaderName, HeaderValue};
use http::request::Parts;
use httpdate::HttpDate;
use thiserror::Error;

use crate::identity::Credential;
use crate::identity::certificate::Certificate;
pub use crate::key::Patience;
use crate::key::{self, Key, Scheme};

pub mod cavage;
pub mod dialect;
pub mod digest;
pub mod verify;

use cavage::{Absent, Component, Message, SignatureFrame};
use dialect::{Dialect, DigestRule, KeyIdRule, When};
use digest::BodyDigest;

/// The `Digest` header (RFC 3230 section 4.3.2).
pub const DIGEST: HeaderName = HeaderName::from_static("digest");
/// The `Signature` header (draft-cavage-http-signatures-12 section 4).
pub const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// How requests to one upstream are sealed: a dialect and what the configuration changes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The dialect to start from.
    pub dialect: &'static Dialect,
    /// The key's name at the bank; `None`: made from the certificate as the dialect says.
    pub key_id: Option<String>,
    /// `Some` overrides the dialect's quoting of `keyId`.
    pub key_id_quoted: Option<bool>,
    /// Further headers to sign where a request has them.
    pub sign: Vec<HeaderName>,
}

/// Seals the requests of one upstream with one credential. Immutable, shared by all reactors.
#[derive(Debug)]
pub struct Sealer {
    key: Key,
    key_id: String,
    frame: SignatureFrame,
    rules: Vec<Rule>,
    digest: DigestRule,
    certificate: Option<(HeaderName, HeaderValue)>,
    /// What the key's signatures are verified with, where they are.
    proof: Option<Certificate>,
}

#[derive(Debug)]
struct Rule {
    component: Component,
    when: When,
}

impl Sealer {
    /// Joins a profile and a credential; what is constant from request to request is rendered here.
    pub fn new(profile: &Profile, credential: &Credential) -> Result<Self, SetupError> {
        let dialect = profile.dialect;
        let key = credential.key().clone();
        let scheme = key.scheme();
        let Some((_, label)) = dialect.labels.iter().find(|(labelled, _)| *labelled == scheme) else {
            return Err(SetupError::NoLabel { dialect: dialect.name, scheme });
        };
        let quoted = profile.key_id_quoted.unwrap_or(dialect.key_id_quoted);
        let key_id = profile.key_id.clone().unwrap_or_else(|| key_id(dialect.key_id, credential));
        if !SignatureFrame::accepts(&key_id, quoted) {
            return Err(SetupError::KeyId { key_id, quoted });
        }
        Ok(Self {
            frame: SignatureFrame::new(&key_id, quoted, label, dialect.separator),
            rules: rules(dialect, &profile.sign),
            digest: dialect.digest,
            certificate: dialect.certificate_header.map(|name| certificate_header(name, credential)),
            proof: key.is_on_token().then(|| credential.certificate().clone()),
            key,
            key_id,
        })
    }

    /// The digest of a body that has not begun.
    pub fn digest(&self) -> BodyDigest {
        BodyDigest::new(self.digest.algorithm)
    }

    /// The name of our key at the bank, as sent in `keyId`.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key that signs.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether a seal sets this header; whatever a caller sent under the name is replaced.
    pub fn sets(&self, name: &HeaderName) -> bool {
        [DATE, DIGEST, SIGNATURE].contains(name) || self.certificate.as_ref().is_some_and(|(own, _)| own == name)
    }

    /// Whether the signature covers a header, if a request has it.
    pub fn covers(&self, name: &HeaderName) -> bool {
        self.rules.iter().any(|rule| matches!(&rule.component, Component::Header(covered) if covered == name))
    }

    /// Seals a head whose other headers are final: waits for the key's turn, then reads the clock, sets `Date`,
    /// `Digest` and `Signature`, and looks at the clock once more. On an error the head is not sealed and must not be
    /// sent.
    pub async fn seal(
        &self,
        head: &mut Parts,
        body: Body<'_>,
        patience: Patience,
        clock: impl Fn() -> SystemTime,
    ) -> Result<(), Error> {
        self.prepare(head, body);
        let signing = patience.signing.min(SIGNING);
        let turn = self.key.turn(Patience { signing, ..patience }).await?;
        let (dated, string) = self.date(head, body, clock())?;
        let mut signature = turn.sign(&string).await?;
        self.prove(&string, &signature)?;
        if let Err(stale) = judge_age(dated, clock()) {
            // The thread had too much to do for one that waited for others.
            let (dated, string) = self.date(head, body, clock())?;
            signature = self.key.sign_alone(&string).ok_or(stale)??;
            judge_age(dated, clock())?;
        }
        let signature = STANDARD.encode(signature);
        let value = self.frame.render(self.covered(&message(head), body), &signature);
        head.headers.insert(SIGNATURE, value);
        Ok(())
    }

    /// Sets `Date`, and renders what is to be signed.
    fn date(&self, head: &mut Parts, body: Body<'_>, now: SystemTime) -> Result<(HttpDate, Vec<u8>), Error> {
        let dated = HttpDate::from(now);
        head.headers.insert(DATE, date(dated));
        let message = message(head);
        let string = cavage::signing_string(self.covered(&message, body), &message)?;
        Ok((dated, string))
    }

    /// Some microseconds, where a token has just taken milliseconds.
    fn prove(&self, string: &[u8], signature: &[u8]) -> Result<(), Error> {
        let Some(certificate) = &self.proof else { return Ok(()) };
        certificate.verify(string, signature, self.key.scheme()).map_err(|_| key::Error::Wrong.into())
    }

    fn prepare(&self, head: &mut Parts, body: Body<'_>) {
        if body.present || self.digest.empty_body {
            head.headers.insert(DIGEST, body.digest.clone());
        } else {
            head.headers.remove(DIGEST);
        }
        if let Some((name, value)) = &self.certificate {
            head.headers.insert(name, value.clone());
        }
    }

    /// The components that a signature over this message covers, in order. A required component is listed even
    /// where the message lacks it, so that rendering fails rather than signs less.
    fn covered<'a>(&'a self, message: &'a Message<'a>, body: Body<'_>) -> impl Iterator<Item = &'a Component> + 'a {
        let has_body = body.present;
        self.rules
            .iter()
            .filter(move |rule| match rule.when {
                When::Always => true,
                When::WithBody => has_body,
                When::IfPresent => rule.component.is_in(message),
            })
            .map(|rule| &rule.component)
    }
}

/// What a signature should take at most: its `Date` may be a second old from the beginning.
const SIGNING: Duration = FRESH.saturating_sub(Duration::from_secs(1));

/// What a seal needs to know of a body.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// Its digest, as [`BodyDigest::finish`] renders it.
    pub digest: &'a HeaderValue,
    /// Whether it has at least one byte.
    pub present: bool,
}

fn message(head: &Parts) -> Message<'_> {
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    Message { method: &head.method, target, headers: &head.headers }
}

fn date(now: HttpDate) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(now.to_string())).expect("an IMF-fixdate is ASCII")
}

/// Refuses a `Date` that has grown old while the key signed. It is in whole seconds, and as old as these say. A clock
/// that was set back meanwhile is no reason: it was wrong before, or is now.
fn judge_age(dated: HttpDate, now: SystemTime) -> Result<(), Error> {
    match now.duration_since(dated.into()) {
        Ok(age) if age > FRESH => Err(Error::Stale(age)),
        _ => Ok(()),
    }
}

/// No bank is to see a `Date` older than two seconds; a fifth of one is for the way there.
const FRESH: Duration = Duration::from_millis(1800);

fn rules(dialect: &Dialect, extra: &[HeaderName]) -> Vec<Rule> {
    let own = dialect.covered.iter().map(|covered| Rule {
        component: Component::parse(covered.name).expect("a dialect's names are header names"),
        when: covered.when,
    });
    let extra = extra.iter().map(|name| Rule { component: Component::Header(name.clone()), when: When::IfPresent });
    own.chain(extra).collect()
}

fn key_id(rule: KeyIdRule, credential: &Credential) -> String {
    let certificate = credential.certificate();
    match rule {
        KeyIdRule::Sha1Hex => certificate.sha1_hex(),
        KeyIdRule::SerialAndIssuer => {
            format!("SN={},CA={}", certificate.serial_hex(), certificate.issuer().replace(' ', "%20"))
        }
    }
}

fn certificate_header(name: &'static str, credential: &Credential) -> (HeaderName, HeaderValue) {
    let base64 = STANDARD.encode(credential.certificate().der());
    (HeaderName::from_static(name), HeaderValue::try_from(base64).expect("base64 is visible ASCII"))
}

/// Why a profile and a credential do not go together.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The bank has no label for signatures of this kind of key.
    #[error("the profile {dialect} has no signature algorithm for a key that is {scheme}")]
    NoLabel {
        /// The dialect's name.
        dialect: &'static str,
        /// What the key signs with.
        scheme: Scheme,
    },
    /// The key id cannot stand in a header.
    #[error("the key id {key_id:?} cannot be written {}", if *quoted { "between quotes" } else { "without quotes" })]
    KeyId {
        /// The key id.
        key_id: String,
        /// Whether it was to stand in quotes.
        quoted: bool,
    },
}

/// Why a request was not sealed. Nothing of it may be sent.
#[derive(Debug, Error)]
pub enum Error {
    /// A header that must be signed is missing: the steps before the seal let an illegal head through.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// As many seals wait for the key as may.
    #[error("too many requests wait for the seal key")]
    Busy(#[source] key::Error),
    /// More seals wait for the key than it would make in time with this one.
    #[error("the seal key has too much to do")]
    Behind(#[source] key::Error),
    /// The token that holds the key is gone, locked or broken.
    #[error("the seal key is out of reach")]
    Unreachable(#[source] key::Error),
    /// The key took so long that the `Date` is too old now.
    #[error("the seal key took too long for the `Date`, which would be {0:.1?} old and must reach the bank within 2 s")]
    Stale(Duration),
    /// The token that holds the key does not work.
    #[error("the seal key is not to be trusted at present")]
    Wrong(#[source] key::Error),
    /// The key did not sign.
    #[error("the seal key did not sign")]
    Key(#[source] key::Error),
}

impl From<key::Error> for Error {
    fn from(error: key::Error) -> Self {
        match error {
            key::Error::Busy(_) => Self::Busy(error),
            key::Error::Behind(_) => Self::Behind(error),
            key::Error::Wrong => Self::Wrong(error),
            #[cfg(feature = "pkcs11")]
            key::Error::Token(_) => Self::Unreachable(error),
            _ => Self::Key(error),
        }
    }
}
