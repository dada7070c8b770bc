//! Judges a received request as a bank does: the exact reason on failure. No sockets; the clock is an argument.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::identity::certificate::{Certificate, Curve, PublicKey};
use crate::key::Scheme;

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

    /// How far `Date` may be from the clock, either way, in whole seconds. 5 minutes unless told otherwise.
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
        let parse = |name: &str| Component::parse(name).ok_or_else(|| Rejected::NotAName(brief(name)));
        let listed: Vec<Component> = list.split(' ').map(parse).collect::<Result<_, _>>()?;
        // A name that could come twice would make the signing string grow with the square of the head.
        let mut seen = BTreeSet::new();
        if let Some(twice) = listed.iter().find(|component| !seen.insert(component.name())) {
            return Err(Rejected::ListedTwice(twice.to_string()));
        }
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
        // Only one of the three forms that parse is written today (RFC 9110 section 5.6.7).
        let fixdate = |date: &SystemTime| httpdate::fmt_http_date(*date) == text;
        let date = httpdate::parse_http_date(text).ok().filter(fixdate);
        let date = date.ok_or_else(|| Rejected::NotADate(text.to_owned()))?;
        let tolerance = self.tolerance.as_secs();
        match now.duration_since(date).map_err(|lead| lead.duration().as_secs()) {
            Ok(age) if age.as_secs() > tolerance => Err(Rejected::Stale { seconds: age.as_secs(), tolerance }),
            Err(seconds) if seconds > tolerance => Err(Rejected::Early { seconds, tolerance }),
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
        let labels = self.dialect.labels;
        let registered = scheme(certificate.public_key());
        // A key of a kind that the bank has no label for verifies nothing, whatever the label says.
        let known = labels.iter().find(|(scheme, _)| Some(*scheme) == registered).or(labels.first());
        if let (Some(found), Some((_, expected))) = (label, known)
            && found != expected
        {
            return Err(Rejected::Algorithm { found: found.clone(), expected: (*expected).to_owned() });
        }
        if known.is_some_and(|(scheme, _)| certificate.verify(string, signature, *scheme).is_ok()) {
            return Ok(());
        }
        Err(Rejected::Signature { string: String::from_utf8_lossy(string).into_owned() })
    }
}

/// What a key of this kind signs with: the registered key decides, and the label must not contradict it
/// (draft-cavage-http-signatures-12 section 2.1.3).
fn scheme(key: &PublicKey) -> Option<Scheme> {
    match key {
        PublicKey::Rsa { .. } => Some(Scheme::RsaPkcs1Sha256),
        PublicKey::Ec { curve: Curve::P256, .. } => Some(Scheme::EcdsaP256Sha256),
        _ => None,
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
        let (value, after) = parameter_value(after.trim_start()).ok_or_else(|| Rejected::Malformed(brief(name)))?;
        if name.is_empty() || name.contains(['"', ',', ' ', '\t']) {
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
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
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
    #[error("the Signature header has the parameter {0:?} twice")]
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
    /// Something is in the list twice.
    #[error("the list of signed headers holds {0} twice")]
    ListedTwice(String),
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
    #[error("the Date {0:?} is not an IMF-fixdate like \"Tue, 20 Apr 2021 02:07:55 GMT\"")]
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http::Method;

    use super::*;
    use crate::identity::pem;
    use crate::seal::dialect::BECM;

    const TARGET: &str = "/becm/stet-psd2-api/v2.1/accounts";
    const LIST: &str = "(request-target) host date x-request-id";

    fn vector(member: &str) -> String {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/becm.json")).expect("JSON");
        vectors["cases"][0][member].as_str().expect("text").to_owned()
    }

    /// The golden request without a body, its `Signature` changed.
    fn headers(change: impl FnOnce(String) -> String) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", vector("host")),
            ("date", vector("date")),
            ("x-request-id", vector("x_request_id")),
            ("signature", change(vector("signature"))),
        ] {
            headers.insert(HeaderName::from_static(name), value.parse().expect("a value"));
        }
        headers
    }

    fn certificate(name: &str) -> Certificate {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
        Certificate::from_der(pem::read_chain(&path).expect("a chain").remove(0)).expect("a certificate")
    }

    fn verify(dialect: &'static Dialect, headers: &HeaderMap, late: Duration) -> Result<Verified, Rejected> {
        let golden = certificate("becm-qsealc.pem");
        let key_id = golden.sha1_hex();
        let now = httpdate::parse_http_date(&vector("date")).expect("a date") + late;
        let message = Message { method: &Method::GET, target: TARGET, headers };
        Verifier::new(dialect).register(&key_id, golden).verify(&message, b"", now)
    }

    #[test]
    fn a_name_listed_twice_is_refused_before_it_costs_anything() {
        let many = headers(|signature| signature.replace(LIST, &format!("{LIST}{}", " host".repeat(20_000))));
        let rejected = verify(&BECM, &many, Duration::ZERO).expect_err("refused");
        assert_eq!(rejected, Rejected::ListedTwice("host".into()));
        assert_eq!(rejected.to_string(), "the list of signed headers holds host twice");
        let spelled = headers(|signature| signature.replace(LIST, &format!("{LIST} DATE")));
        assert_eq!(verify(&BECM, &spelled, Duration::ZERO), Err(Rejected::ListedTwice("date".into())));
    }

    #[test]
    fn the_registered_key_decides_the_algorithm_and_the_label_must_agree() {
        const TWO: Dialect =
            Dialect { labels: &[(Scheme::EcdsaP256Sha256, "ecdsa"), (Scheme::RsaPkcs1Sha256, "rsa-sha256")], ..BECM };
        let without = headers(|signature| signature.replace("algorithm=\"rsa-sha256\",", ""));
        for dialect in [&BECM, &TWO] {
            verify(dialect, &without, Duration::ZERO).expect("the label is not demanded");
        }
        let other = headers(|signature| signature.replace("rsa-sha256", "ecdsa"));
        assert_eq!(
            verify(&TWO, &other, Duration::ZERO),
            Err(Rejected::Algorithm { found: "ecdsa".into(), expected: "rsa-sha256".into() })
        );
    }

    #[test]
    fn a_dialect_without_labels_accepts_no_signature() {
        const NONE: Dialect = Dialect { labels: &[], ..BECM };
        let rejected = verify(&NONE, &headers(|signature| signature), Duration::ZERO);
        assert_eq!(rejected, Err(Rejected::Signature { string: vector("signing_string") }));
    }

    #[test]
    fn only_an_imf_fixdate_is_a_date() {
        for obsolete in ["Tuesday, 20-Apr-21 02:07:55 GMT", "Tue Apr 20 02:07:55 2021", "Tue, 20 Apr 2021 02:07:55 UTC"]
        {
            let mut headers = headers(|signature| signature);
            headers.insert(DATE, HeaderValue::from_static(obsolete));
            assert_eq!(verify(&BECM, &headers, Duration::ZERO), Err(Rejected::NotADate(obsolete.into())));
        }
    }

    #[test]
    fn the_age_that_is_told_is_the_age_that_is_judged() {
        let headers = headers(|signature| signature);
        verify(&BECM, &headers, Duration::from_millis(300_999)).expect("a Date has no milliseconds");
        let rejected = verify(&BECM, &headers, Duration::from_millis(301_000)).expect_err("refused");
        assert_eq!(rejected.to_string(), "the Date is 301 seconds old, 300 are tolerated");
    }

    #[test]
    fn parameters_may_have_white_space_around_everything() {
        let read = parameters("a = \"b, \\\"c\\\"\"\t,\td=e\t, f=g=").expect("parameters");
        let expected = [("a", "b, \"c\""), ("d", "e"), ("f", "g=")];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        for malformed in ["=b", "a", "a=", "a=\"b", "a=\"b\\", "a=b c=d", "a b=c", "a=b\"c", "a=,b=c"] {
            assert!(matches!(parameters(malformed), Err(Rejected::Malformed(_))), "{malformed}");
        }
    }
}
