//! Judges a received request as a bank does: the exact reason on failure. No sockets; the clock is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, DATE, HeaderName};
use http::{HeaderMap, HeaderValue};
use thiserror::Error;

use super::cavage::{Component, Message, signing_string};
use super::dialect::{Dialect, When};
use super::digest::BodyDigest;
use super::{DIGEST, SIGNATURE};
use crate::identity::certificate::Certificate;

/// Knows a dialect and the certificates that are registered under their key ids.
#[derive(Clone, Debug)]
pub struct Verifier {
    dialect: &'static Dialect,
    registered: BTreeMap<String, Certificate>,
    tolerance: Duration,
}

/// What a request that passed was signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The key's name.
    pub key_id: String,
    /// What the signature covers, in its order.
    pub covered: Vec<String>,
}

impl Verifier {
    /// Knows no key yet.
    pub fn new(dialect: &'static Dialect) -> Self {
        Self { dialect, registered: BTreeMap::new(), tolerance: Duration::from_secs(300) }
    }

    /// Registers a seal certificate under a key id.
    #[must_use]
    pub fn register(mut self, key_id: &str, certificate: Certificate) -> Self {
        self.registered.insert(key_id.to_owned(), certificate);
        self
    }

    /// How far `Date` may be from the clock, either way. 5 minutes unless told otherwise.
    #[must_use]
    pub fn tolerance(self, tolerance: Duration) -> Self {
        Self { tolerance, ..self }
    }

    /// Judges a request by its head and whole body, as of `now`.
    pub fn verify(&self, message: &Message<'_>, body: &[u8], now: SystemTime) -> Result<Verified, Rejected> {
        let parameters = parameters(single(message.headers, &SIGNATURE)?)?;
        let wanted = |name: &'static str| parameters.get(name).ok_or(Rejected::NoParameter(name));
        let key_id = wanted("keyId")?;
        let certificate = self.registered.get(key_id).ok_or_else(|| Rejected::UnknownKey(key_id.clone()))?;
        let covered = self.components(wanted("headers")?, message, !body.is_empty())?;
        self.judge_date(message.headers, now)?;
        self.judge_digest(message.headers, body)?;
        let string = signing_string(covered.iter(), message).map_err(|absent| Rejected::Unsent(absent.0))?;
        let signature = STANDARD.decode(wanted("signature")?).map_err(|_| Rejected::NotBase64)?;
        self.judge_signature(certificate, parameters.get("algorithm"), &string, &signature)?;
        Ok(Verified { key_id: key_id.clone(), covered: covered.iter().map(ToString::to_string).collect() })
    }

    fn components(&self, list: &str, message: &Message<'_>, has_body: bool) -> Result<Vec<Component>, Rejected> {
        if list.is_empty() {
            return Err(Rejected::EmptyList);
        }
        let parse = |name: &str| Component::parse(name).ok_or_else(|| Rejected::NotAName(name.to_owned()));
        let listed: Vec<Component> = list.split(' ').map(parse).collect::<Result<_, _>>()?;
        if listed.contains(&Component::Header(AUTHORIZATION)) {
            return Err(Rejected::SignsAuthorization);
        }
        for covered in self.dialect.covered {
            let component = parse(covered.name)?;
            let demanded = match covered.when {
                When::Always => true,
                When::WithBody => has_body,
                When::IfPresent => component.is_in(message),
            };
            if demanded && !listed.contains(&component) {
                return Err(Rejected::NotCovered(covered.name));
            }
        }
        Ok(listed)
    }

    fn judge_date(&self, headers: &HeaderMap, now: SystemTime) -> Result<(), Rejected> {
        let text = single(headers, &DATE)?;
        let date = httpdate::parse_http_date(text).map_err(|_| Rejected::NotADate(text.to_owned()))?;
        match (now.duration_since(date), date.duration_since(now)) {
            (Ok(age), _) if age > self.tolerance => {
                Err(Rejected::Stale { seconds: age.as_secs(), tolerance: self.tolerance.as_secs() })
            }
            (_, Ok(lead)) if lead > self.tolerance => {
                Err(Rejected::Early { seconds: lead.as_secs(), tolerance: self.tolerance.as_secs() })
            }
            _ => Ok(()),
        }
    }

    fn judge_digest(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), Rejected> {
        if body.is_empty() && !self.dialect.digest.empty_body {
            return if headers.contains_key(DIGEST) { Err(Rejected::DigestWithoutBody) } else { Ok(()) };
        }
        let mut digest = BodyDigest::new(self.dialect.digest.algorithm);
        digest.update(body);
        let expected = text(&digest.finish()).to_owned();
        let found = single(headers, &DIGEST)?;
        if found == expected { Ok(()) } else { Err(Rejected::Digest { found: found.to_owned(), expected }) }
    }

    fn judge_signature(
        &self,
        certificate: &Certificate,
        label: Option<&String>,
        string: &[u8],
        signature: &[u8],
    ) -> Result<(), Rejected> {
        let known = self.dialect.labels.iter().find(|(_, known)| label.is_none_or(|label| label == known));
        let Some((scheme, _)) = known else {
            return Err(Rejected::Algorithm {
                found: label.cloned().unwrap_or_default(),
                expected: self.dialect.labels.iter().map(|(_, label)| *label).collect::<Vec<_>>().join(", "),
            });
        };
        certificate
            .verify(string, signature, *scheme)
            .map_err(|_| Rejected::Signature { string: String::from_utf8_lossy(string).into_owned() })
    }
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

/// A header's one value.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Rejected> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Rejected::NotText(name.clone())),
        (None, _) => Err(Rejected::Missing(name.clone())),
        (Some(_), Some(_)) => Err(Rejected::Repeated(name.clone())),
    }
}

/// Reads `name=value` and `name="value"` with commas between them, in any order (RFC 9110 section 11.2). Unknown
/// names are ignored; a name that comes twice is not (draft-cavage-http-signatures-12 section 2.2).
pub fn parameters(value: &str) -> Result<BTreeMap<String, String>, Rejected> {
    let mut parameters = BTreeMap::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| Rejected::Malformed(brief(rest)))?;
        let name = name.trim();
        let (value, after) = parameter_value(after).ok_or_else(|| Rejected::Malformed(brief(name)))?;
        if name.is_empty() || name.contains(['"', ',', ' ']) {
            return Err(Rejected::Malformed(brief(name)));
        }
        if parameters.insert(name.to_owned(), value).is_some() {
            return Err(Rejected::RepeatedParameter(brief(name)));
        }
        rest = match after.trim_start() {
            "" => "",
            more => more.strip_prefix(',').ok_or_else(|| Rejected::Malformed(brief(more)))?.trim_start(),
        };
    }
    Ok(parameters)
}

/// A token or a quoted string, and what stands behind it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (end > 0 && !text[..end].contains('"')).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

fn brief(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Why a request is refused, with what was found and what was expected.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Rejected {
    /// A header that must be there.
    #[error("the header {0} is missing")]
    Missing(HeaderName),
    /// A header that must be single.
    #[error("the header {0} is there more than once")]
    Repeated(HeaderName),
    /// A header with bytes outside visible ASCII.
    #[error("the header {0} is not text")]
    NotText(HeaderName),
    /// The `Signature` header is no list of parameters.
    #[error("the Signature header cannot be read at {0:?}")]
    Malformed(String),
    /// A parameter that is there twice.
    #[error("the Signature header has the parameter {0} twice")]
    RepeatedParameter(String),
    /// A parameter that must be there.
    #[error("the Signature header has no parameter {0}")]
    NoParameter(&'static str),
    /// Nobody registered this key.
    #[error("no key is registered under the keyId {0:?}")]
    UnknownKey(String),
    /// Another algorithm than the bank's.
    #[error("the algorithm is {found:?}, expected {expected}")]
    Algorithm {
        /// As sent.
        found: String,
        /// What the bank takes.
        expected: String,
    },
    /// `headers=""`.
    #[error("the list of signed headers is empty")]
    EmptyList,
    /// Something in the list is no header's name.
    #[error("the list of signed headers holds {0:?}, which is no header name")]
    NotAName(String),
    /// Something that must be signed is not.
    #[error("{0} is not signed")]
    NotCovered(&'static str),
    /// A token must not be signed.
    #[error("authorization is signed, and must not be")]
    SignsAuthorization,
    /// Something is signed that was not sent.
    #[error("the header {0} is signed, but the request has none")]
    Unsent(HeaderName),
    /// `Date` is no date.
    #[error("the Date {0:?} is not an HTTP date")]
    NotADate(String),
    /// `Date` is too old.
    #[error("the Date is {seconds} seconds old, {tolerance} are tolerated")]
    Stale {
        /// Its age.
        seconds: u64,
        /// The most that is tolerated.
        tolerance: u64,
    },
    /// `Date` is in the future.
    #[error("the Date is {seconds} seconds in the future, {tolerance} are tolerated")]
    Early {
        /// Its lead.
        seconds: u64,
        /// The most that is tolerated.
        tolerance: u64,
    },
    /// A digest of nothing.
    #[error("the request has a Digest and no body")]
    DigestWithoutBody,
    /// Another body than the digest's.
    #[error("the Digest is {found}, but that of the body is {expected}")]
    Digest {
        /// As sent.
        found: String,
        /// Of the body that came.
        expected: String,
    },
    /// The signature is not base64.
    #[error("the signature is not base64")]
    NotBase64,
    /// The signature is another key's or over other bytes.
    #[error("the signature does not verify with the registered certificate over {string:?}")]
    Signature {
        /// The signing string as the bank sees it.
        string: String,
    },
}
