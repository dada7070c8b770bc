//! Judges the order, completeness and signatures of a chain as it is going to be presented. A bank builds its own path, but
//! many take the chain as it comes. Must not know whom the bank trusts.

use std::time::SystemTime;

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;

use super::certificate::{self, Certificate, Curve, PublicKey, Validity};
use super::preflight::{Issue, Level, day, warning};

/// Judges the certificates behind the first one, and the links between them.
pub(super) fn judge(chain: &[CertificateDer<'static>], now: SystemTime) -> Vec<Issue> {
    let mut links = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        match (certificate::parse(der), Certificate::from_der(der.clone())) {
            (Ok(x509), Ok(certificate)) => links.push(Link { number: index + 1, x509, certificate }),
            _ => {
                let reason = format!("certificate {} of the file cannot be read", index + 1);
                return vec![warning("malformed-chain", reason, "give the chain as it was issued")];
            }
        }
    }
    let mut issues = validity(&links, now);
    issues.extend(order(&links).or_else(|| completeness(&links)));
    issues.extend(links.windows(2).filter_map(|pair| signature(&pair[0], &pair[1])));
    issues
}

/// One certificate of the file, counted from 1.
struct Link<'a> {
    number: usize,
    x509: X509Certificate<'a>,
    certificate: Certificate,
}

impl Link<'_> {
    /// By name (RFC 5280 section 6.1.3); whether it signed it is another question.
    fn is_issued_by(&self, other: &Self) -> bool {
        self.x509.issuer().as_raw() == other.x509.subject().as_raw()
    }
}

fn validity(links: &[Link<'_>], now: SystemTime) -> Vec<Issue> {
    let behind = links.iter().skip(1);
    behind
        .filter_map(|link| {
            let subject = link.certificate.subject();
            let hint = "ask the trust service provider for its present chain";
            match link.certificate.validity_at(now) {
                Validity::Valid => None,
                Validity::Expired => {
                    let end = day(link.certificate.not_after());
                    Some(warning("chain-expired", format!("its chain has {subject}, which expired on {end}"), hint))
                }
                Validity::NotYet => {
                    let begin = day(link.certificate.not_before());
                    let reason = format!("its chain has {subject}, which is valid only from {begin}");
                    Some(warning("chain-not-yet-valid", reason, hint))
                }
            }
        })
        .collect()
}

/// RFC 5246 section 7.4.2: each certificate certifies the one before it.
fn order(links: &[Link<'_>]) -> Option<Issue> {
    let wrong = links.windows(2).find(|pair| !pair[0].is_issued_by(&pair[1]))?;
    let mut right = vec![&links[0]];
    while let Some(last) = right.last()
        && let Some(issuer) = links.iter().find(|link| last.is_issued_by(link))
        && !right.iter().any(|known| known.number == issuer.number)
    {
        right.push(issuer);
    }
    let foreign: Vec<_> =
        links.iter().filter(|link| !right.iter().any(|known| known.number == link.number)).map(place).collect();
    let right: Vec<_> = right.iter().map(|link| place(link)).collect();
    let mut reason = format!("{} did not issue {}; in order: {}", place(&wrong[1]), place(&wrong[0]), right.join(", "));
    if !foreign.is_empty() {
        reason.push_str(&format!("; not of this chain: {}", foreign.join(", ")));
    }
    Some(warning("chain-order", reason, "write the leaf first, and behind each certificate the one that issued it"))
}

fn place(link: &Link<'_>) -> String {
    format!("certificate {} ({})", link.number, link.certificate.subject())
}

/// The root may be left out: whoever trusts it has it.
fn completeness(links: &[Link<'_>]) -> Option<Issue> {
    let [only] = links else { return None };
    (!only.certificate.is_self_issued()).then(|| {
        let reason = format!("the file holds the certificate without its issuer {}", only.certificate.issuer());
        let hint = "append the intermediate certificates: some banks build no path without them";
        warning("chain-incomplete", reason, hint)
    })
}

/// Whether the second signed the first.
fn signature(link: &Link<'_>, issuer: &Link<'_>) -> Option<Issue> {
    if !link.is_issued_by(issuer) {
        return None;
    }
    let oid = link.x509.signature_algorithm.algorithm.to_id_string();
    if oid == SHA1_WITH_RSA || oid == SHA1_WITH_ECDSA {
        let reason = format!("{} is signed over SHA-1, which nobody trusts any more", place(link));
        return Some(warning("sha1-signature", reason, "ask the trust service provider for another one"));
    }
    let Some((algorithm, key)) = algorithm(&oid, issuer.certificate.public_key(), issuer) else {
        let reason = format!("the signature on {} cannot be verified here: {}", place(link), in_words(&oid));
        let hint = "nothing to do, unless the bank's TLS stack has the same limits";
        return Some(Issue { level: Level::Note, code: "unverifiable-signature", reason, hint });
    };
    let key = UnparsedPublicKey::new(algorithm, key);
    let verified = key.verify(link.x509.tbs_certificate.as_ref(), &link.x509.signature_value.data);
    verified.is_err().then(|| Issue {
        level: Level::Error,
        code: "chain-broken",
        reason: format!("{} is not signed by {}, though it names it as its issuer", place(link), place(issuer)),
        hint: "take the chain that was issued with this certificate, not one of the same name",
    })
}

fn algorithm<'a>(
    oid: &str,
    key: &'a PublicKey,
    issuer: &'a Link<'_>,
) -> Option<(&'static dyn VerificationAlgorithm, &'a [u8])> {
    Some(match (oid, key) {
        (SHA256_WITH_RSA, PublicKey::Rsa { pkcs1, .. }) => (&RSA_PKCS1_2048_8192_SHA256, pkcs1),
        (SHA384_WITH_RSA, PublicKey::Rsa { pkcs1, .. }) => (&RSA_PKCS1_2048_8192_SHA384, pkcs1),
        (SHA512_WITH_RSA, PublicKey::Rsa { pkcs1, .. }) => (&RSA_PKCS1_2048_8192_SHA512, pkcs1),
        (SHA256_WITH_ECDSA, PublicKey::Ec { curve: Curve::P256, point }) => (&ECDSA_P256_SHA256_ASN1, point),
        (SHA384_WITH_ECDSA, PublicKey::Ec { curve: Curve::P256, point }) => (&ECDSA_P256_SHA384_ASN1, point),
        (SHA256_WITH_ECDSA, PublicKey::Ec { curve: Curve::P384, point }) => (&ECDSA_P384_SHA256_ASN1, point),
        (SHA384_WITH_ECDSA, PublicKey::Ec { curve: Curve::P384, point }) => (&ECDSA_P384_SHA384_ASN1, point),
        (WITH_ED25519, _) => (&ED25519, &issuer.x509.public_key().subject_public_key.data),
        _ => return None,
    })
}

/// What a signature algorithm is called.
fn in_words(oid: &str) -> String {
    match oid {
        SHA512_WITH_ECDSA => "ECDSA with SHA-512".into(),
        SHA256_WITH_ECDSA | SHA384_WITH_ECDSA => "ECDSA on another curve than P-256 and P-384".into(),
        RSA_PSS => "RSA-PSS".into(),
        WITH_ED448 => "Ed448".into(),
        SHA256_WITH_RSA | SHA384_WITH_RSA | SHA512_WITH_RSA => "RSA by a key of another kind or size".into(),
        other => format!("the algorithm {other}"),
    }
}

const SHA1_WITH_RSA: &str = "1.2.840.113549.1.1.5";
const RSA_PSS: &str = "1.2.840.113549.1.1.10";
const SHA256_WITH_RSA: &str = "1.2.840.113549.1.1.11";
const SHA384_WITH_RSA: &str = "1.2.840.113549.1.1.12";
const SHA512_WITH_RSA: &str = "1.2.840.113549.1.1.13";
const SHA1_WITH_ECDSA: &str = "1.2.840.10045.4.1";
const SHA256_WITH_ECDSA: &str = "1.2.840.10045.4.3.2";
const SHA384_WITH_ECDSA: &str = "1.2.840.10045.4.3.3";
const SHA512_WITH_ECDSA: &str = "1.2.840.10045.4.3.4";
const WITH_ED25519: &str = "1.3.101.112";
const WITH_ED448: &str = "1.3.101.113";
