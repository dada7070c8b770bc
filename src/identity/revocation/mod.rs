//! Whether a certificate of ours has been revoked, as its issuer says it: by CRL (RFC 5280) or OCSP (RFC 6960). Bytes
//! in, verdicts out; the clock is an argument. Must not know files, sockets or HTTP.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "yasna's methods are not general enough in their lifetimes"
)]

use std::fmt;
use std::time::{Duration, SystemTime};

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::prelude::{
    DistributionPointName, FromDer as _, GeneralName, ParsedExtension, SubjectPublicKeyInfo, X509Certificate,
};

use super::certificate::{self, parse};

mod crl;
mod der;
mod ocsp;
mod signature;
mod url;

pub use crl::{CrlError, crls};
pub use ocsp::OcspError;
pub use signature::SignatureError;
pub use url::{ResponderUrl, UrlError};

/// What the issuer says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not revoked.
    Good {
        /// When this statement ends: its nextUpdate.
        until: SystemTime,
    },
    /// Revoked, or on hold.
    Revoked {
        /// The issuer's date.
        since: SystemTime,
        /// As far as the issuer gives one.
        reason: Option<Reason>,
    },
}

impl Verdict {
    /// Whether the certificate is not to be used.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Revoked { .. })
    }

    /// What two statements about the same certificate come to: revoked if one says so, else good for the longer time.
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Good { until: one }, Self::Good { until: other }) => Self::Good { until: one.max(other) },
            (Self::Good { .. }, revoked) => revoked,
            (revoked, _) => revoked,
        }
    }
}

/// A CRLReason (RFC 5280 section 5.3.1). Displays as the name that the RFC gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(u8);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match REASONS.get(usize::from(self.0)) {
            Some(name) if !name.is_empty() => f.write_str(name),
            _ => write!(f, "reason {}", self.0),
        }
    }
}

const REASONS: [&str; 11] = [
    "unspecified",
    "keyCompromise",
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "certificateHold",
    "",
    "removeFromCRL",
    "privilegeWithdrawn",
    "aACompromise",
];

/// A certificate, and what is needed of the certificate that it was issued with, to ask for it and to judge answers.
#[derive(Clone, Debug)]
pub struct Issued {
    serial: Vec<u8>,
    responder: Option<String>,
    /// The URLs of the CRL distribution points.
    points: Vec<String>,
    issuer: Issuer,
}

/// Who may speak about the certificate.
#[derive(Clone, Debug)]
struct Issuer {
    /// DER.
    name: Vec<u8>,
    /// DER of SubjectPublicKeyInfo.
    key: Vec<u8>,
    signs_crls: bool,
}

impl Issued {
    /// Takes the first certificate of a chain, and the one among the others that issued it, shown by name and
    /// signature.
    pub fn from_chain(chain: &[CertificateDer<'_>]) -> Result<Self, ChainError> {
        let (leaf, others) = chain.split_first().ok_or(ChainError::Empty)?;
        let leaf = parse(leaf)?;
        let mut failed = None;
        for other in others {
            let issuer = parse(other)?;
            if issuer.subject().as_raw() != leaf.issuer().as_raw() {
                continue;
            }
            match signed_by(&leaf, issuer.public_key()) {
                Ok(()) => return Ok(Self::new(&leaf, &issuer)),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.map_or(ChainError::NoIssuer, ChainError::NotIssued))
    }

    fn new(leaf: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Self {
        Self {
            serial: leaf.raw_serial().to_vec(),
            responder: responder(leaf),
            points: distribution_points(leaf),
            issuer: Issuer {
                name: issuer.subject().as_raw().to_vec(),
                key: issuer.public_key().raw.to_vec(),
                signs_crls: signs_crls(issuer),
            },
        }
    }

    /// Where the certificate says that OCSP is answered (RFC 5280 section 4.2.2.1): the first http URL.
    pub fn responder(&self) -> Option<&str> {
        self.responder.as_deref()
    }

    /// Where the certificate says that its CRL is (section 4.2.1.13).
    pub fn distribution_points(&self) -> &[String] {
        &self.points
    }
}

impl Issuer {
    fn key(&self) -> SubjectPublicKeyInfo<'_> {
        SubjectPublicKeyInfo::from_der(&self.key).expect("a key that was part of a certificate").1
    }

    fn name_hash(&self) -> Vec<u8> {
        sha1(&self.name)
    }

    /// Of the key's bits alone (RFC 6960 section 4.1.1).
    fn key_hash(&self) -> Vec<u8> {
        sha1(&self.key().subject_public_key.data)
    }
}

/// A name in the protocol, never a proof.
fn sha1(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
}

fn signed_by(certificate: &X509Certificate<'_>, key: &SubjectPublicKeyInfo<'_>) -> Result<(), SignatureError> {
    let message = certificate.tbs_certificate.as_ref();
    signature::verify(key, &certificate.signature_algorithm, message, &certificate.signature_value.data)
}

fn responder(leaf: &X509Certificate<'_>) -> Option<String> {
    let access = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => Some(access),
        _ => None,
    })?;
    let ocsp = access.accessdescs.iter().filter(|access| access.access_method.to_id_string() == ID_AD_OCSP);
    ocsp.filter_map(|access| url_of(&access.access_location)).find(|url| url.starts_with("http://"))
}

const ID_AD_OCSP: &str = "1.3.6.1.5.5.7.48.1";

fn distribution_points(leaf: &X509Certificate<'_>) -> Vec<String> {
    let points = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::CRLDistributionPoints(points) => Some(points),
        _ => None,
    });
    let names = points.iter().flat_map(|points| points.iter()).filter_map(|point| point.distribution_point.as_ref());
    names.flat_map(urls).collect()
}

fn urls(name: &DistributionPointName<'_>) -> Vec<String> {
    match name {
        DistributionPointName::FullName(names) => names.iter().filter_map(url_of).collect(),
        DistributionPointName::NameRelativeToCRLIssuer(_) => Vec::new(),
    }
}

fn url_of(name: &GeneralName<'_>) -> Option<String> {
    match *name {
        GeneralName::URI(url) => Some(url.to_owned()),
        _ => None,
    }
}

/// RFC 5280 section 6.3.3 (f).
fn signs_crls(issuer: &X509Certificate<'_>) -> bool {
    issuer.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
}

/// How far the issuer's clock and ours may be apart.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// Why the issuer of a certificate is not known.
#[derive(Debug, Error)]
pub enum ChainError {
    /// Not even the certificate itself.
    #[error("the chain is empty")]
    Empty,
    /// No X.509.
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    /// The file of the certificate ends too early.
    #[error(
        "the issuer's certificate does not follow in the file of the certificate, and revocation cannot be checked"
    )]
    NoIssuer,
    /// The same name, and another key.
    #[error("the certificate in the chain that has the issuer's name did not sign it")]
    NotIssued(#[source] SignatureError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_statement_that_it_is_revoked_is_enough() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let (good, longer) = (Verdict::Good { until: at(1) }, Verdict::Good { until: at(2) });
        let revoked = Verdict::Revoked { since: at(0), reason: Some(Reason(1)) };
        assert_eq!((good.join(longer), longer.join(good)), (longer, longer));
        assert_eq!((good.join(revoked), revoked.join(good)), (revoked, revoked));
    }

    #[test]
    fn reasons_have_the_names_of_the_rfc() {
        assert_eq!([1, 6, 7, 10, 11].map(|code| Reason(code).to_string()).join(" "), REASON_NAMES);
    }

    const REASON_NAMES: &str = "keyCompromise certificateHold reason 7 aACompromise reason 11";

    // Made with OpenSSL 3.0: two certificates of an authority, the second one revoked, its list, and the answers of a
    // delegated responder to OpenSSL's own requests. All within half a minute, for a day.
    const OURS: &[u8] = include_bytes!("../../../tests/vectors/revocation/ours.pem");
    const GONE: &[u8] = include_bytes!("../../../tests/vectors/revocation/gone.pem");
    const LIST: &[u8] = include_bytes!("../../../tests/vectors/revocation/list.crl");
    const REQUEST: &[u8] = include_bytes!("../../../tests/vectors/revocation/ours.request");
    const ANSWER: &[u8] = include_bytes!("../../../tests/vectors/revocation/ours.answer");
    const GONE_ANSWER: &[u8] = include_bytes!("../../../tests/vectors/revocation/gone.answer");
    const MADE: Duration = Duration::from_secs(1_795_432_849);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn issued(pem: &[u8]) -> Issued {
        Issued::from_chain(&crate::identity::pem::chain(pem).expect("a chain")).expect("leaf and issuer")
    }

    #[test]
    fn what_openssl_made_is_read_as_openssl_means_it() {
        let (ours, gone, now) = (issued(OURS), issued(GONE), SystemTime::UNIX_EPOCH + MADE);
        assert_eq!(ours.ocsp_request(), REQUEST);
        let good = Verdict::Good { until: now + DAY };
        assert_eq!(ours.read_crl(LIST, now), Ok(good));
        let Ok(Verdict::Good { until }) = ours.read_ocsp(ANSWER, now + SKEW) else { panic!("good") };
        assert!(until >= now + DAY && until < now + DAY + SKEW, "{until:?}");
        let revoked = Verdict::Revoked { since: now, reason: Some(Reason(1)) };
        assert_eq!(gone.read_crl(LIST, now), Ok(revoked));
        assert_eq!(gone.read_ocsp(GONE_ANSWER, now + SKEW), Ok(revoked));
    }

    #[test]
    fn both_ends_of_a_statement_have_some_minutes_for_clocks_that_differ() {
        let (ours, made) = (issued(OURS), SystemTime::UNIX_EPOCH + MADE);
        let second = Duration::from_secs(1);
        assert!(ours.read_crl(LIST, made - SKEW).is_ok() && ours.read_crl(LIST, made + DAY + SKEW).is_ok());
        assert_eq!(ours.read_crl(LIST, made - SKEW - second), Err(CrlError::NotYet));
        assert_eq!(ours.read_crl(LIST, made + DAY + SKEW + second), Err(CrlError::Stale));
        assert_eq!(ours.read_ocsp(ANSWER, made - SKEW - second), Err(OcspError::ResponderExpired));
        assert_eq!(ours.read_ocsp(ANSWER, made + DAY + 2 * SKEW), Err(OcspError::Stale));
    }
}
