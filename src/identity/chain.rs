//! Judges the order, completeness and signatures of a chain as it is going to be presented. A bank builds its own path,
//! but many take the chain as it comes. Must not know whom the bank trusts.

use std::time::SystemTime;

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;
use x509_parser::public_key::PublicKey as RsaOrOther;

use super::certificate::{self, Certificate, Curve, PublicKey, Validity};
use super::preflight::{EXPIRES_SOON, Issue, Level, day, warning};

/// Judges the certificates behind the first one, and the links between them.
pub(super) fn judge(chain: &[CertificateDer<'static>], now: SystemTime) -> Vec<Issue> {
    let links = match links(chain) {
        Ok(links) => links,
        Err(number) => {
            let reason = format!("certificate {number} of the file cannot be read");
            return vec![warning("malformed-chain", reason, "give the chain as it was issued")];
        }
    };
    let path = path(&links);
    let mut issues = validity(&links, now);
    issues.extend(broken(&links, &path).or_else(|| order(&links, &path)).or_else(|| completeness(&links)));
    issues.extend(authorities(&path));
    issues.extend(path.iter().filter_map(|link| link.weakness()));
    issues.extend(path.windows(2).filter_map(|pair| unverified(pair[0], pair[1])));
    issues
}

/// Judges a chain that is to follow another one: whether it ends below an authority that came with the other.
pub(super) fn judge_succession(chain: &[CertificateDer<'static>], held: &[CertificateDer<'static>]) -> Option<Issue> {
    let (links, held) = (links(chain).ok()?, links(held).ok()?);
    let path = path(&links);
    let last = path.last().filter(|last| !last.is_root())?;
    // Whoever trusts a root has it.
    let missing = held.iter().find(|link| last.names_as_issuer(link) && !link.is_root())?;
    Some(Issue {
        level: Level::Error,
        code: "chain-cut",
        reason: format!(
            "the chain ends with {} and lacks {}, which the chain in use has",
            place(last),
            missing.certificate.subject()
        ),
        hint: "has the file been written to its end?",
    })
}

/// The subjects on the way up from a chain's leaf, roots aside, whose certificates are not among `served`.
pub(super) fn missing(chain: &[CertificateDer<'static>], served: &[CertificateDer<'static>]) -> Vec<String> {
    let Ok(links) = links(chain) else { return Vec::new() };
    let is_missing = |link: &&Link<'_>| !link.is_root() && !served.iter().any(|der| **der == *link.certificate.der());
    path(&links).into_iter().filter(is_missing).map(|link| link.certificate.subject().to_owned()).collect()
}

/// `Err`: the number of the certificate that cannot be read.
fn links<'a>(chain: &'a [CertificateDer<'static>]) -> Result<Vec<Link<'a>>, usize> {
    let mut links = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        match (certificate::parse(der), Certificate::from_der(der.clone())) {
            (Ok(x509), Ok(certificate)) => links.push(Link { number: index + 1, x509, certificate }),
            _ => return Err(index + 1),
        }
    }
    Ok(links)
}

/// One certificate of the file, counted from 1.
struct Link<'a> {
    number: usize,
    x509: X509Certificate<'a>,
    certificate: Certificate,
}

/// What a look at a signature shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signed {
    Yes,
    No,
    /// Not to be told here.
    Unknown,
}

impl Link<'_> {
    /// By name (RFC 5280 section 6.1.3); whether it signed it is another question.
    fn names_as_issuer(&self, other: &Self) -> bool {
        self.x509.issuer().as_raw() == other.x509.subject().as_raw()
    }

    fn is_signed_by(&self, issuer: &Self) -> Signed {
        let oid = self.x509.signature_algorithm.algorithm.to_id_string();
        let Some((algorithm, key)) = algorithm(&oid, issuer.certificate.public_key(), issuer) else {
            return Signed::Unknown;
        };
        let signature = &self.x509.signature_value.data;
        match UnparsedPublicKey::new(algorithm, key).verify(self.x509.tbs_certificate.as_ref(), signature) {
            Ok(()) => Signed::Yes,
            Err(_) => Signed::No,
        }
    }

    /// Whether a path ends here. An authority that changed its key may have signed its own name by the earlier one (RFC
    /// 4210 section 4.4): that is no end.
    fn is_root(&self) -> bool {
        self.certificate.is_self_issued() && self.is_signed_by(self) != Signed::No
    }

    /// Whoever trusts a root does not look at the signature on it.
    fn weakness(&self) -> Option<Issue> {
        let oid = self.x509.signature_algorithm.algorithm.to_id_string();
        let is_weak = [SHA1_WITH_RSA, SHA1_WITH_ECDSA].contains(&oid.as_str());
        (is_weak && !self.is_root()).then(|| {
            let reason = format!("{} is signed over SHA-1, which nobody trusts any more", place(self));
            warning("sha1-signature", reason, "ask the trust service provider for another one")
        })
    }

    /// Whether verifiers take its key for one that issues (RFC 5280 section 6.1.4), with `below` authorities under it.
    fn may_issue(&self, below: usize) -> Result<(), &'static str> {
        let limit = match self.x509.basic_constraints() {
            Ok(Some(constraints)) if constraints.value.ca => constraints.value.path_len_constraint,
            _ => return Err("is no authority's (basicConstraints)"),
        };
        if let Ok(Some(usage)) = self.x509.key_usage()
            && !usage.value.key_cert_sign()
        {
            return Err("may not sign certificates (keyUsage)");
        }
        match limit {
            Some(limit) if below > limit as usize => Err("may not have that many authorities below it (pathLen)"),
            _ => Ok(()),
        }
    }
}

/// The way up from the leaf. Of several authorities with one name, such as an earlier and a later key of one, it goes
/// by the one that signed.
fn path<'a, 'b>(links: &'a [Link<'b>]) -> Vec<&'a Link<'b>> {
    let mut path: Vec<&Link<'_>> = links.first().into_iter().collect();
    while let Some(last) = path.last().copied()
        && !last.is_root()
    {
        let is_new = |link: &&Link<'_>| !path.iter().any(|known| known.number == link.number);
        let named: Vec<_> = links.iter().filter(is_new).filter(|link| last.names_as_issuer(link)).collect();
        let by = |wanted| named.iter().copied().find(|link| last.is_signed_by(link) == wanted);
        let Some(issuer) = by(Signed::Yes).or_else(|| by(Signed::Unknown)) else { break };
        path.push(issuer);
    }
    path
}

fn validity(links: &[Link<'_>], now: SystemTime) -> Vec<Issue> {
    let Some((leaf, behind)) = links.split_first() else { return Vec::new() };
    let end_of_leaf = leaf.certificate.not_after();
    let hint = "ask the trust service provider for its present chain";
    let judged = behind.iter().filter_map(|link| {
        let (certificate, subject) = (&link.certificate, link.certificate.subject());
        let end = certificate.not_after();
        match certificate.validity_at(now) {
            Validity::Expired => {
                Some(warning("chain-expired", format!("its chain has {subject}, which expired on {}", day(end)), hint))
            }
            Validity::NotYet => {
                let begin = day(certificate.not_before());
                let reason = format!("its chain has {subject}, which is valid only from {begin}");
                Some(warning("chain-not-yet-valid", reason, hint))
            }
            // Otherwise the leaf's successor brings a chain of its own before this ends.
            Validity::Valid if end < now + EXPIRES_SOON && end < end_of_leaf => {
                let reason = format!("its chain has {subject}, which expires on {}, before the leaf", day(end));
                Some(warning("chain-expires-soon", reason, hint))
            }
            Validity::Valid => None,
        }
    });
    judged.collect()
}

/// Where the path ends because its issuer is there by name alone. An authority that signed its own name by an earlier
/// key may come without that key's certificate.
fn broken(links: &[Link<'_>], path: &[&Link<'_>]) -> Option<Issue> {
    let last = path.last().filter(|last| !last.certificate.is_self_issued())?;
    let issuer = links.iter().find(|link| last.names_as_issuer(link) && last.is_signed_by(link) == Signed::No)?;
    Some(Issue {
        level: Level::Error,
        code: "chain-broken",
        reason: format!("{} is not signed by {}, though it names it as its issuer", place(last), place(issuer)),
        hint: "take the chain that was issued with this certificate, not one of the same name",
    })
}

/// RFC 5246 section 7.4.2: each certificate certifies the one before it.
fn order(links: &[Link<'_>], path: &[&Link<'_>]) -> Option<Issue> {
    let in_place = path.iter().zip(links).take_while(|(right, link)| right.number == link.number).count();
    let (before, wrong) = (links.get(in_place.checked_sub(1)?)?, links.get(in_place)?);
    let is_foreign = |link: &&Link<'_>| !path.iter().any(|known| known.number == link.number);
    let foreign: Vec<_> = links.iter().filter(is_foreign).map(place).collect();
    let right: Vec<_> = path.iter().map(|link| place(link)).collect();
    let mut reason = format!("{} did not issue {}; in order: {}", place(wrong), place(before), right.join(", "));
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

/// The certificates between leaf and root. What a root says of itself, those who trust it may leave aside.
fn authorities(path: &[&Link<'_>]) -> Vec<Issue> {
    let between: Vec<_> = path.iter().skip(1).filter(|link| !link.is_root()).collect();
    let judged = between.iter().enumerate().filter_map(|(index, link)| {
        let below = between[..index].iter().filter(|link| !link.certificate.is_self_issued()).count();
        let wrong = link.may_issue(below).err()?;
        let reason = format!("{}, which issued the one before it, {wrong}", place(link));
        let hint = "verifiers refuse such a path: give the chain that was issued with this certificate";
        Some(warning("chain-not-of-an-authority", reason, hint))
    });
    judged.collect()
}

/// A signature on the path of which nothing can be said here. One over SHA-1 has a finding of its own.
fn unverified(link: &Link<'_>, issuer: &Link<'_>) -> Option<Issue> {
    if link.is_signed_by(issuer) != Signed::Unknown || link.weakness().is_some() {
        return None;
    }
    let words = in_words(&link.x509.signature_algorithm.algorithm.to_id_string());
    let reason = format!("the signature on {} cannot be verified here: {words}", place(link));
    let hint = "nothing to do, unless the bank's TLS stack has the same limits";
    Some(Issue { level: Level::Note, code: "unverifiable-signature", reason, hint })
}

/// What verifies such a signature. A key that ring refuses must not reach it: to ring that is a bad signature.
fn algorithm<'a>(
    oid: &str,
    key: &'a PublicKey,
    issuer: &'a Link<'_>,
) -> Option<(&'static dyn VerificationAlgorithm, &'a [u8])> {
    if !is_of_ring(key, issuer) {
        return None;
    }
    Some(match (oid, key) {
        (SHA256_WITH_RSA, PublicKey::Rsa { pkcs1, .. }) => (&RSA_PKCS1_2048_8192_SHA256, pkcs1),
        (SHA384_WITH_RSA, PublicKey::Rsa { pkcs1, .. }) => (&RSA_PKCS1_2048_8192_SHA384, pkcs1),
        (SHA512_WITH_RSA, PublicKey::Rsa { pkcs1, .. }) => (&RSA_PKCS1_2048_8192_SHA512, pkcs1),
        (SHA256_WITH_ECDSA, PublicKey::Ec { curve: Curve::P256, point }) => (&ECDSA_P256_SHA256_ASN1, point),
        (SHA384_WITH_ECDSA, PublicKey::Ec { curve: Curve::P256, point }) => (&ECDSA_P256_SHA384_ASN1, point),
        (SHA256_WITH_ECDSA, PublicKey::Ec { curve: Curve::P384, point }) => (&ECDSA_P384_SHA256_ASN1, point),
        (SHA384_WITH_ECDSA, PublicKey::Ec { curve: Curve::P384, point }) => (&ECDSA_P384_SHA384_ASN1, point),
        (WITH_ED25519, PublicKey::Other(own)) if own == WITH_ED25519 => {
            (&ED25519, &issuer.x509.public_key().subject_public_key.data)
        }
        _ => return None,
    })
}

/// ring takes RSA of 2048 to 8192 bits, counted in whole bytes, exponents of at most 33 bits, and points that are not
/// compressed (SEC 1 section 2.3.3).
fn is_of_ring(key: &PublicKey, issuer: &Link<'_>) -> bool {
    match key {
        PublicKey::Rsa { bits, .. } => {
            let Ok(RsaOrOther::RSA(parsed)) = issuer.x509.public_key().parsed() else { return false };
            let exponent = parsed.try_exponent().unwrap_or(u64::MAX);
            bits.next_multiple_of(8) >= 2048 && *bits <= 8192 && exponent < 1 << 33
        }
        PublicKey::Ec { point, .. } => point.first() == Some(&4),
        PublicKey::Other(_) => true,
    }
}

/// What a signature algorithm is called.
fn in_words(oid: &str) -> String {
    match oid {
        SHA512_WITH_ECDSA => "ECDSA with SHA-512".into(),
        SHA256_WITH_ECDSA | SHA384_WITH_ECDSA => {
            "ECDSA on another curve than P-256 and P-384, or by a compressed point".into()
        }
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

// rcgen issues the certificates.
#[cfg(test)]
#[cfg(feature = "sandbox")]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
        PKCS_ED25519,
    };

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    fn named(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (now() - DAY).into();
        params.not_after = (now() + 365 * DAY).into();
        params
    }

    fn authority(name: &str, below: u8) -> CertificateParams {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    fn root(params: &CertificateParams) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let key = key();
        let der = params.self_signed(&key).unwrap().der().clone();
        (der, Issuer::new(params.clone(), key))
    }

    fn below(
        params: &CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let key = key();
        let der = params.signed_by(&key, issuer).unwrap().der().clone();
        (der, Issuer::new(params.clone(), key))
    }

    /// A leaf, the authority above it as `middle` has it, and the root.
    fn three(middle: &CertificateParams) -> [CertificateDer<'static>; 3] {
        let (root, above) = root(&authority("root", 1));
        let (middle, above) = below(middle, &above);
        [below(&named("leaf"), &above).0, middle, root]
    }

    fn codes(chain: &[CertificateDer<'static>]) -> Vec<&'static str> {
        judge(chain, now()).into_iter().map(|issue| issue.code).collect()
    }

    #[test]
    fn a_chain_in_order_is_beyond_reproach_with_its_root_and_without() {
        let chain = three(&authority("middle", 0));
        assert_eq!(codes(&chain), [""; 0]);
        assert_eq!(codes(&chain[..2]), [""; 0]);
        assert_eq!(codes(&chain[..1]), ["chain-incomplete"]);
        assert_eq!(codes(&chain[2..]), [""; 0]);
        assert_eq!(codes(&[]), [""; 0]);
    }

    #[test]
    fn disorder_is_told_with_the_right_order() {
        let [leaf, middle, root] = three(&authority("middle", 0));
        let issues = judge(&[leaf, root, middle], now());
        let [issue] = issues.as_slice() else { panic!("{issues:?}") };
        assert_eq!((issue.level, issue.code), (Level::Warning, "chain-order"));
        let right = "in order: certificate 1 (CN=leaf), certificate 3 (CN=middle), certificate 2 (CN=root)";
        let wrong = "certificate 2 (CN=root) did not issue certificate 1 (CN=leaf); ";
        assert_eq!(issue.reason, format!("{wrong}{right}"));
    }

    #[test]
    fn what_lies_beside_the_chain_is_named() {
        let [leaf, middle, root] = three(&authority("middle", 0));
        let [.., stranger] = three(&authority("middle", 0));
        for (chain, stray) in [
            ([&leaf, &middle, &root, &stranger], 4),
            ([&leaf, &middle, &stranger, &root], 3),
            ([&leaf, &middle, &middle, &root], 3),
            ([&leaf, &leaf, &middle, &root], 2),
        ] {
            let chain = chain.map(Clone::clone);
            let issues = judge(&chain, now());
            let [issue] = issues.as_slice() else { panic!("{issues:?}") };
            assert_eq!((issue.level, issue.code), (Level::Warning, "chain-order"));
            assert!(issue.reason.contains(&format!("; not of this chain: certificate {stray} (")), "{}", issue.reason);
        }
    }

    #[test]
    fn an_authority_of_the_same_name_that_signed_nothing_is_an_error() {
        let [leaf, middle, root] = three(&authority("middle", 0));
        let [_, other, _] = three(&authority("middle", 0));
        let issues = judge(&[leaf, other, root.clone()], now());
        assert_eq!((issues[0].level, issues[0].code), (Level::Error, "chain-broken"));
        let mut flipped = middle.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(codes(&[flipped.into(), root]), ["chain-broken"]);
    }

    #[test]
    fn an_authority_that_changed_its_key_is_followed_to_the_earlier_one() {
        let params = authority("root", 1);
        let (old, by_old) = root(&params);
        let key = key();
        let new_by_old = params.signed_by(&key, &by_old).unwrap().der().clone();
        let new = params.self_signed(&key).unwrap().der().clone();
        let leaf = below(&named("leaf"), &Issuer::new(params, key)).0;
        assert_eq!(codes(&[leaf.clone(), new_by_old.clone(), old.clone()]), [""; 0]);
        assert_eq!(codes(&[leaf.clone(), new_by_old.clone()]), [""; 0]);
        // Either is enough, and neither is broken.
        assert_eq!(codes(&[leaf.clone(), new.clone(), old]), ["chain-order"]);
        assert_eq!(codes(&[leaf, new_by_old, new]), ["chain-order"]);
    }

    #[test]
    fn authorities_that_issued_each_other_are_followed_once() {
        let (one, other) = (authority("one", 1), authority("other", 1));
        let (by_one, by_other) = (root(&one).1, root(&other).1);
        let one_by_other = one.signed_by(by_one.key(), &by_other).unwrap().der().clone();
        let other_by_one = other.signed_by(by_other.key(), &by_one).unwrap().der().clone();
        assert_eq!(codes(&[below(&named("leaf"), &by_one).0, one_by_other, other_by_one]), [""; 0]);
    }

    #[test]
    fn verifiers_take_no_certificate_from_whom_may_not_issue() {
        assert_eq!(codes(&three(&named("middle"))), ["chain-not-of-an-authority"]);
        let mut params = authority("middle", 0);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        assert_eq!(codes(&three(&params)), ["chain-not-of-an-authority"]);
        params.key_usages = Vec::new();
        assert_eq!(codes(&three(&params)), [""; 0]);
    }

    #[test]
    fn an_authority_bounds_how_many_are_below_it() {
        for (allowed, expected) in [(0, &["chain-not-of-an-authority"][..]), (1, &[])] {
            let (top, by_top) = root(&authority("root", 2));
            let (upper, by_upper) = below(&authority("upper", allowed), &by_top);
            let (lower, by_lower) = below(&authority("lower", 0), &by_upper);
            assert_eq!(codes(&[below(&named("leaf"), &by_lower).0, lower, upper, top]), expected);
        }
    }

    #[test]
    fn each_certificate_behind_the_leaf_has_its_time() {
        let mut params = authority("middle", 0);
        let mut ending = |begin: SystemTime, end: SystemTime| {
            (params.not_before, params.not_after) = (begin.into(), end.into());
            codes(&three(&params))
        };
        assert_eq!(ending(now() - 9 * DAY, now() - DAY), ["chain-expired"]);
        assert_eq!(ending(now() + DAY, now() + 400 * DAY), ["chain-not-yet-valid"]);
        assert_eq!(ending(now() - DAY, now() + 29 * DAY), ["chain-expires-soon"]);
        assert_eq!(ending(now() - DAY, now() + 31 * DAY), [""; 0]);
    }

    #[test]
    fn ed25519_is_verified_too() {
        let params = authority("root", 0);
        let own = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let der = params.self_signed(&own).unwrap().der().clone();
        let leaf = below(&named("leaf"), &Issuer::new(params, own)).0;
        assert_eq!(codes(&[leaf.clone(), der.clone()]), [""; 0]);
        let mut flipped = leaf.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(codes(&[flipped.into(), der]), ["chain-broken"]);
    }

    #[test]
    fn a_chain_that_cannot_be_read_is_said_to_be() {
        let [leaf, middle, _] = three(&authority("middle", 0));
        let issues = judge(&[leaf, middle[..9].to_vec().into()], now());
        assert_eq!((issues.len(), issues[0].code), (1, "malformed-chain"));
        assert!(issues[0].reason.contains("certificate 2 "), "{}", issues[0].reason);
    }

    #[test]
    fn a_successor_that_ends_below_what_came_with_the_one_before_is_cut() {
        let (top, above) = root(&authority("root", 2));
        let (first, above) = below(&authority("first", 1), &above);
        let (second, above) = below(&authority("second", 0), &above);
        let (old, new) = (below(&named("leaf"), &above).0, below(&named("leaf"), &above).0);
        let held = [old, second.clone(), first.clone()];
        let code = |chain: &[CertificateDer<'static>], held: &[CertificateDer<'static>]| {
            judge_succession(chain, held).map(|issue| issue.code)
        };
        assert_eq!(code(std::slice::from_ref(&new), &held), Some("chain-cut"));
        assert_eq!(code(&[new.clone(), second.clone()], &held), Some("chain-cut"));
        assert_eq!(code(&[new.clone(), first.clone()], &held), Some("chain-cut"));
        let whole = [new, second, first];
        assert_eq!(code(&whole, &held), None);
        let [old, second, first] = held;
        assert_eq!(code(&whole, &[old, second, first, top]), None, "the root may be left out");
        let other = three(&authority("another", 0));
        assert_eq!(code(&other[..2], &whole), None, "another provider's");
    }
}
