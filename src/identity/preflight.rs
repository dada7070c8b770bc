//! Judges certificates before a bank does: what they are for, whose they are, which roles they carry, how they are
//! issued. Pure; the clock is an argument. Must not know routes, upstreams or HTTP: what those need comes in as
//! expectations.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{KeyUsage, X509Certificate};

use super::certificate::{self, Certificate, PublicKey, Validity};
use super::chain;
use super::qcstatements::{Psd2, QcStatements, QcType, Role};

/// Something found in an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// How bad it is.
    pub level: Level,
    /// One stable word for machines.
    pub code: &'static str,
    /// What is so.
    pub reason: String,
    /// What to do about it.
    pub hint: &'static str,
}

impl Issue {
    /// Judges it anew in a certificate that is to follow one with the issues `before`: a chain that was whole there has
    /// been cut or mixed up on its way.
    pub fn compare(&mut self, before: &[Self]) {
        let is_new = !before.iter().any(|issue| (issue.code, &issue.reason) == (self.code, &self.reason));
        if is_new && FAULTS_OF_CHAINS.contains(&self.code) {
            self.level = Level::Error;
            self.reason.push_str(", which is not so of the chain in use");
        }
    }
}

/// What may be wrong with the certificates behind the leaf.
const FAULTS_OF_CHAINS: [&str; 6] = [
    "chain-expired",
    "chain-incomplete",
    "chain-not-of-an-authority",
    "chain-not-yet-valid",
    "chain-order",
    "malformed-chain",
];

/// How bad an issue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Worth knowing.
    Note,
    /// Probably not meant, or refused by some banks.
    Warning,
    /// Not to be used.
    Error,
}

/// What is demanded of an identity's certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// The organizationIdentifier, such as `PSDFR-ACPR-12345`, that both certificates must name.
    pub authorisation: Option<String>,
    /// The roles that both certificates must carry.
    pub roles: Vec<Role>,
    /// The roles that routes need.
    pub needed: Vec<Need>,
}

/// A role that a route needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The role.
    pub role: Role,
    /// What needs it: the route's path, or what is likely to be sent through it.
    pub what: String,
    /// Whether the path says so.
    pub is_named: bool,
}

/// A certificate with the chain that it came with, and what it is to be used for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The leaf.
    pub certificate: &'a Certificate,
    /// Everything that was given, leaf first.
    pub chain: &'a [CertificateDer<'static>],
    /// Its use here.
    pub purpose: Purpose,
}

/// What a certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Presented on TLS connections: a QWAC.
    Presenting,
    /// Its key signs requests: a QSealC.
    Sealing,
}

/// Judges one certificate as of `now`.
pub fn judge(subject: &Subject<'_>, expectations: &Expectations, now: SystemTime) -> Vec<Issue> {
    let mut found = Judged { issues: Vec::new(), purpose: subject.purpose };
    found.validity(subject, now);
    found.form(subject.certificate);
    found.statements(subject.certificate, expectations);
    let is_swapped = found.issues.iter().any(|issue| issue.code == OTHER_TYPE);
    if let Ok(x509) = certificate::parse(subject.certificate.der())
        && !is_swapped
    {
        found.usage(&x509);
        found.extended_usage(&x509);
    }
    found.authorisation(subject.certificate, expectations);
    found.issues.extend(chain::judge(subject.chain, now));
    found.issues
}

/// Judges the two certificates of one identity against each other.
pub fn judge_together(qwac: &Certificate, seal: &Certificate) -> Option<Issue> {
    let (Some(qwac), Some(seal)) = (qwac.organization_identifier(), seal.organization_identifier()) else {
        return None;
    };
    (qwac != seal).then(|| {
        let reason = format!("the QWAC names the organisation {qwac}, the QSealC {seal}");
        let hint = "both certificates must name the organisation that the bank registered";
        warning("two-organisations", reason, hint)
    })
}

/// Judges a chain that is to be presented after another one of the same bank's client.
pub fn judge_succession(chain: &[CertificateDer<'static>], held: &[CertificateDer<'static>]) -> Option<Issue> {
    chain::judge_succession(chain, held)
}

/// What somebody who has the certificates `served` lacks of a chain, by subjects. Whoever trusts a root has it.
pub fn missing_of_chain(chain: &[CertificateDer<'static>], served: &[CertificateDer<'static>]) -> Vec<String> {
    chain::missing(chain, served)
}

/// Judges a QWAC that is to follow another one: the bank knows its client by the subject.
pub fn judge_subject(new: &Certificate, held: &Certificate) -> Option<Issue> {
    let name = |it: &Certificate| (it.subject().to_owned(), it.organization_identifier().map(str::to_owned));
    (name(new) != name(held)).then(|| Issue {
        level: Level::Error,
        code: "other-subject",
        reason: format!("the new QWAC is for {}, the present one for {}", new.subject(), held.subject()),
        hint: "the bank knows its client by the subject: if it knows the new one, set `allow_subject_change: true`",
    })
}

/// Judges a QWAC that is to follow another one: what that one states of being qualified, this one must state too.
pub fn judge_qualification(new: &Certificate, held: &Certificate) -> Option<Issue> {
    let of_new = qualification(new);
    let lost: Vec<_> = qualification(held).into_iter().filter(|stated| !of_new.contains(stated)).collect();
    (!lost.is_empty()).then(|| Issue {
        level: Level::Error,
        code: "qualification-lost",
        reason: format!("it does not state what the certificate in use states: {}", lost.join(", ")),
        hint: "banks of PSD2 take qualified certificates alone: is this the QWAC's successor?",
    })
}

fn qualification(certificate: &Certificate) -> Vec<&'static str> {
    let Ok(Some(statements)) = certificate.qc_statements() else { return Vec::new() };
    let stated = [
        (statements.compliance, "that it is qualified (QcCompliance)"),
        (statements.qc_type == Some(QcType::Web), "that it is for website authentication (QcType)"),
        (statements.psd2.is_some(), "roles and a competent authority (PSD2)"),
    ];
    stated.into_iter().filter_map(|(is_stated, what)| is_stated.then_some(what)).collect()
}

/// Notes that a QWAC is of another issuer than the one that it follows: some banks trust issuers one by one.
pub fn judge_issuer(new: &Certificate, held: &Certificate) -> Option<Issue> {
    // An authority's new key has its old name; where either certificate does not say which key it was, the name
    // decides.
    let keys = new.authority_key_id().zip(held.authority_key_id());
    let is_another_key = keys.is_some_and(|(new, held)| new != held);
    let by = if is_another_key && new.issuer() == held.issuer() { "by another key of" } else { "by" };
    (is_another_key || new.issuer() != held.issuer()).then(|| Issue {
        level: Level::Note,
        code: "issuer-changed",
        reason: format!("the new QWAC is issued {by} {}, the one before it by {}", new.issuer(), held.issuer()),
        hint: "does the bank trust the new issuer?",
    })
}

/// Judges the roles that the configuration states, if it states any, against those that its routes need.
pub fn judge_stated_roles(expectations: &Expectations) -> Vec<Issue> {
    if expectations.roles.is_empty() {
        return Vec::new();
    }
    let missing = expectations.needed.iter().filter(|need| !expectations.roles.contains(&need.role));
    let judged = missing.map(|Need { role, what, .. }| {
        let reason = format!("{} is not among them, and {what} needs it", role.name());
        let hint = "state the role if you have it, or take the route away or the method out of its `methods`";
        warning("role-not-stated", reason, hint)
    });
    judged.collect()
}

/// Judges a key id that stands in the configuration: the banks make theirs from the certificate.
pub fn judge_key_id(key_id: &str, seal: &Certificate) -> Option<Issue> {
    let own = seal.sha1_hex();
    let bare = key_id.replace(':', "");
    if !is_fingerprint(&bare) || own == key_id {
        return None;
    }
    if bare != key_id && own.eq_ignore_ascii_case(&bare) {
        let reason = format!("the key id {key_id} is the QSealC's SHA-1 with colons");
        let hint = "banks write theirs without, and compare letter by letter: give it as the bank returned it";
        return Some(warning("key-id-with-colons", reason, hint));
    }
    if own.eq_ignore_ascii_case(key_id) {
        let reason = format!("the key id {key_id} is the QSealC's SHA-1 in capitals");
        let hint = "banks write theirs in small letters, and compare letter by letter: give it as the bank returned it";
        return Some(warning("key-id-in-capitals", reason, hint));
    }
    let reason = format!("the key id {key_id} has the form of a certificate's SHA-1, and that of the QSealC is {own}");
    let hint = "the bank knows another certificate by this name: give the key id that it returned for this one";
    Some(warning("key-id-of-another-certificate", reason, hint))
}

/// Whether a key id has the form of the SHA-1 of a certificate, which is how the banks name keys.
pub fn is_fingerprint(key_id: &str) -> bool {
    key_id.len() == 40 && key_id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Judges whether certificates belong to the environment that they are used in.
pub fn judge_environment(certificate: &Certificate, is_production: bool) -> Option<Issue> {
    let qualified = certificate.qc_statements().ok().flatten().is_some_and(|statements| statements.compliance);
    match (is_production, test_word(certificate)) {
        (true, Some(word)) => {
            let subject = certificate.subject();
            let reason = format!("the certificate of {subject} looks like one for tests ({word}), in production");
            Some(warning("test-certificate-in-production", reason, "use the certificates that the bank registered"))
        }
        (false, None) if qualified => {
            let reason = "the certificate is a qualified one, and the upstream is a sandbox".to_owned();
            let hint =
                "seals of a qualified certificate have legal effect: use test certificates where the bank takes them";
            Some(warning("qualified-certificate-in-sandbox", reason, hint))
        }
        _ => None,
    }
}

/// A word in the certificate's names that says it is not meant seriously, as it is or numbered. Whole words alone: a
/// name may begin or end like one of them.
fn test_word(certificate: &Certificate) -> Option<&'static str> {
    let names = format!("{} {}", certificate.subject(), certificate.issuer()).to_lowercase();
    let words = names.split(|character: char| !character.is_alphanumeric());
    let words: Vec<&str> = words.map(|word| word.trim_end_matches(|last: char| last.is_ascii_digit())).collect();
    TEST_WORDS.into_iter().find(|word| words.contains(word))
}

/// English, and what French and German authorities and banks call their environments for tests.
const TEST_WORDS: [&str; 13] = [
    "sandbox",
    "test",
    "tests",
    "testing",
    "demo",
    "dummy",
    "uat",
    "staging",
    "invalid",
    "preprod",
    "recette",
    "homologation",
    "testzertifikat",
];

struct Judged {
    issues: Vec<Issue>,
    purpose: Purpose,
}

impl Judged {
    fn error(&mut self, code: &'static str, reason: String, hint: &'static str) {
        self.issues.push(Issue { level: Level::Error, code, reason, hint });
    }

    fn warning(&mut self, code: &'static str, reason: String, hint: &'static str) {
        self.issues.push(warning(code, reason, hint));
    }

    fn validity(&mut self, subject: &Subject<'_>, now: SystemTime) {
        let certificate = subject.certificate;
        match certificate.validity_at(now) {
            Validity::Expired => {
                let reason = format!("the certificate expired on {}", day(certificate.not_after()));
                self.error(EXPIRED, reason, "install its successor");
            }
            Validity::NotYet => {
                let reason = format!("the certificate is valid only from {}", day(certificate.not_before()));
                self.error(NOT_YET_VALID, reason, "wait, or check this machine's clock");
            }
            Validity::Valid if certificate.not_after() < now + EXPIRES_SOON => {
                let reason = format!("the certificate expires on {}", day(certificate.not_after()));
                self.warning("expires-soon", reason, "order its successor now");
            }
            Validity::Valid => {}
        }
    }

    fn form(&mut self, certificate: &Certificate) {
        let hint = "give the certificate that the trust service provider issued to you, followed by its chain";
        if certificate.is_ca() {
            self.error("authority-as-leaf", "the first certificate is an authority's own".into(), hint);
        }
        if certificate.is_self_issued() && !certificate.is_ca() {
            let reason = "the certificate names itself as its issuer: nobody vouches for it".to_owned();
            self.warning("self-signed", reason, hint);
        }
        if certificate.version() != 3 {
            let reason =
                format!("the certificate is of X.509 version {}, and only 3 has purposes", certificate.version());
            self.warning("old-version", reason, hint);
        }
        if let PublicKey::Rsa { bits, .. } = certificate.public_key()
            && *bits > 4096
        {
            let reason = format!("the RSA key has {bits} bits, and keys in memory sign with 2048 to 4096");
            self.warning("large-key", reason, "ask for a certificate over an RSA key of 2048 to 4096 bits");
        }
    }

    /// EN 319 412-2 section 4.3.2: a seal's key may be for commitments alone.
    fn usage(&mut self, x509: &X509Certificate<'_>) {
        let Ok(Some(usage)) = x509.key_usage() else { return };
        let usage: &KeyUsage = usage.value;
        match self.purpose {
            Purpose::Sealing if !usage.digital_signature() && !usage.non_repudiation() => {
                let reason = "its key usage allows neither digitalSignature nor nonRepudiation".to_owned();
                self.error("seal-may-not-sign", reason, "is this the seal certificate?");
            }
            Purpose::Presenting if !usage.digital_signature() => {
                let reason = "its key usage does not allow digitalSignature, which a TLS client needs".to_owned();
                self.warning("qwac-may-not-sign", reason, "are qwac and qsealc swapped?");
            }
            _ => {}
        }
    }

    /// A QSealC need not have any. A QWAC must (EN 319 412-4 by way of the CA/Browser Forum's rules), and some
    /// authorities leave clientAuth out by now.
    fn extended_usage(&mut self, x509: &X509Certificate<'_>) {
        let reason = match x509.extended_key_usage() {
            _ if self.purpose != Purpose::Presenting => return,
            Ok(None) => "it has no extended key usage, which a QWAC must have",
            Ok(Some(usage)) if !usage.value.client_auth && !usage.value.any => {
                "its extended key usage does not allow clientAuth"
            }
            _ => return,
        };
        let hint = "banks may refuse it on the TLS connection: ask the trust service provider for one with clientAuth";
        self.warning("qwac-without-client-auth", reason.to_owned(), hint);
    }

    fn statements(&mut self, certificate: &Certificate, expectations: &Expectations) {
        let statements = match certificate.qc_statements() {
            Ok(Some(statements)) => statements,
            Ok(None) => {
                let reason = "the certificate has no qualified-certificate statements".to_owned();
                let hint = "banks of PSD2 take qualified certificates alone; test certificates may lack them";
                self.roles(None, expectations);
                return self.warning("not-qualified", reason, hint);
            }
            Err(error) => {
                let reason = format!("its qualified-certificate statements cannot be read: {error}");
                self.roles(None, expectations);
                return self.warning("malformed-statements", reason, "give the certificate as it was issued");
            }
        };
        self.kind(statements);
        if !statements.compliance {
            let reason = "it does not state that it is a qualified certificate (QcCompliance)".to_owned();
            self.warning("no-qc-compliance", reason, "banks of PSD2 take qualified certificates alone");
        }
        if statements.sscd {
            let reason = "its key is stated to be in a qualified device (QcSSCD)".to_owned();
            let hint = "such a key is used where it is: behind PKCS#11";
            self.issues.push(Issue { level: Level::Note, code: "qualified-device", reason, hint });
        }
        self.roles(statements.psd2.as_ref(), expectations);
        match &statements.psd2 {
            Some(psd2) => self.authority(psd2, certificate),
            None => {
                let reason = "it has no PSD2 statement: neither roles nor a competent authority".to_owned();
                self.warning("no-psd2-statement", reason, "ask the trust service provider for a PSD2 certificate");
            }
        }
    }

    fn kind(&mut self, statements: &QcStatements) {
        let expected = match self.purpose {
            Purpose::Presenting => QcType::Web,
            Purpose::Sealing => QcType::ESeal,
        };
        match &statements.qc_type {
            Some(found) if *found != expected => {
                let reason = format!("this is a certificate for {}, not for {}", name_of(found), name_of(&expected));
                self.warning(OTHER_TYPE, reason, "are qwac and qsealc swapped?");
            }
            Some(_) => {}
            None => {
                let reason = format!("it does not state that it is for {} (QcType)", name_of(&expected));
                self.warning("no-qc-type", reason, "is this the right certificate?");
            }
        }
    }

    /// Those that the configuration states are promised, those that a path needs are likely.
    fn roles(&mut self, psd2: Option<&Psd2>, expectations: &Expectations) {
        let carries = |role: &Role| psd2.is_some_and(|psd2| psd2.roles.contains(role));
        for role in expectations.roles.iter().filter(|role| !carries(role)) {
            let reason = format!("it does not carry the role {}, which `roles` states", role.name());
            let hint = "correct `roles`, or ask the trust service provider for a certificate with the role";
            self.error("role-missing", reason, hint);
        }
        // Of a certificate without any role that is said, and not what else might be sent.
        let is_told = |need: &&Need| need.is_named || psd2.is_some();
        for Need { role, what, .. } in expectations.needed.iter().filter(is_told).filter(|need| !carries(&need.role)) {
            let reason = format!("it does not carry the role {}, which {what} needs", role.name());
            let hint = "the bank is going to refuse such requests: take the route away or the method out of its `methods`, \
                        or get a certificate with the role";
            self.warning("role-missing-for-route", reason, hint);
        }
    }

    /// TS 119 495 section 5.2: the same authority in the statement and in the organizationIdentifier.
    fn authority(&mut self, psd2: &Psd2, certificate: &Certificate) {
        if !is_nca_id(&psd2.nca_id) {
            let reason = format!("the competent authority's id {:?} is not COUNTRY-CODE, such as FR-ACPR", psd2.nca_id);
            return self.warning("malformed-nca-id", reason, "give the certificate as it was issued");
        }
        let Some(organization) = certificate.organization_identifier() else {
            let reason = "its subject has no organizationIdentifier, by which banks know a provider".to_owned();
            let hint = "ask the trust service provider for a certificate with the authorisation number";
            return self.warning("no-organization-identifier", reason, hint);
        };
        if let Some(named) = organization.strip_prefix("PSD")
            && !named.strip_prefix(&psd2.nca_id).is_some_and(|rest| rest.starts_with('-'))
        {
            let reason = format!(
                "its competent authority is {}, and its organizationIdentifier PSD{named} names another",
                psd2.nca_id
            );
            self.warning("two-authorities", reason, "ask the trust service provider");
        }
    }

    fn authorisation(&mut self, certificate: &Certificate, expectations: &Expectations) {
        let Some(expected) = &expectations.authorisation else { return };
        let found = certificate.organization_identifier();
        if found != Some(expected) {
            let found = found.unwrap_or("none");
            let reason = format!("its organizationIdentifier is {found}, and `authorisation` states {expected}");
            self.error("other-authorisation", reason, "is this another organisation's certificate?");
        }
    }
}

/// The end of a certificate lies behind.
pub const EXPIRED: &str = "expired";
/// The begin of a certificate lies ahead.
pub const NOT_YET_VALID: &str = "not-yet-valid";
/// Says enough of a certificate: what its key may do follows.
pub const OTHER_TYPE: &str = "other-type";

pub(super) fn warning(code: &'static str, reason: String, hint: &'static str) -> Issue {
    Issue { level: Level::Warning, code, reason, hint }
}

/// `^[A-Z]{2}-[A-Z]{2,8}$`
fn is_nca_id(id: &str) -> bool {
    let upper = |text: &str| text.bytes().all(|byte| byte.is_ascii_uppercase());
    id.split_once('-').is_some_and(|(country, code)| {
        country.len() == 2 && upper(country) && (2..=8).contains(&code.len()) && upper(code)
    })
}

/// A trust service provider needs days to weeks to issue a certificate.
pub const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// A moment in words. httpdate writes only years from 1970 to 9999, and a certificate may name others.
pub(super) fn day(moment: SystemTime) -> String {
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    httpdate::fmt_http_date(moment.clamp(SystemTime::UNIX_EPOCH, last))
}

fn name_of(kind: &QcType) -> &str {
    match kind {
        QcType::Web => "website authentication (QWAC)",
        QcType::ESeal => "electronic seals (QSealC)",
        QcType::ESign => "electronic signatures of a person",
        QcType::Other(oid) => oid,
    }
}

// rcgen issues the certificates.
#[cfg(test)]
#[cfg(feature = "sandbox")]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm,
    };

    use super::*;
    use crate::identity::qcstatements;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    /// A certificate in the making, without fault.
    struct Draft {
        purpose: Purpose,
        params: CertificateParams,
        statements: QcStatements,
        key: Public,
    }

    impl Draft {
        fn of(purpose: Purpose, qc_type: QcType, usage: KeyUsagePurpose) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::OrganizationName, "Paiements SAS");
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 97]), "PSDFR-ACPR-12345");
            (params.not_before, params.not_after) = ((now() - DAY).into(), (now() + 365 * DAY).into());
            params.key_usages = vec![usage];
            let psd2 = Psd2 {
                roles: vec![Role::AccountInformation, Role::PaymentInitiation],
                nca_name: "Autorite".into(),
                nca_id: "FR-ACPR".into(),
            };
            let key = Public { bytes: key().der_bytes().to_vec(), algorithm: &PKCS_ECDSA_P256_SHA256 };
            let statements =
                QcStatements { compliance: true, qc_type: Some(qc_type), psd2: Some(psd2), ..QcStatements::default() };
            Self { purpose, params, statements, key }
        }

        fn qwac() -> Self {
            let mut draft = Self::of(Purpose::Presenting, QcType::Web, KeyUsagePurpose::DigitalSignature);
            draft.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            draft
        }

        fn seal() -> Self {
            Self::of(Purpose::Sealing, QcType::ESeal, KeyUsagePurpose::ContentCommitment)
        }

        fn issued(self) -> Issued {
            self.issued_by("Confiance")
        }

        /// Leaf and root, which has a key of its own.
        fn issued_by(mut self, name: &str) -> Issued {
            let content = self.statements.encode();
            if self.statements != QcStatements::default() {
                let extension = CustomExtension::from_oid_content(qcstatements::EXTENSION, content);
                self.params.custom_extensions.push(extension);
            }
            let mut root = CertificateParams::default();
            root.distinguished_name.push(DnType::CommonName, name);
            root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let own = key();
            let above = root.self_signed(&own).unwrap().der().clone();
            let leaf = self.params.signed_by(&self.key, &Issuer::new(root, own)).unwrap().der().clone();
            let certificate = Certificate::from_der(leaf.clone()).unwrap();
            Issued { certificate, chain: vec![leaf, above], purpose: self.purpose }
        }

        fn found(self, expectations: &Expectations) -> Vec<(Level, &'static str)> {
            self.issued().found(expectations, now())
        }

        fn finds(self, expected: &[(Level, &str)]) {
            assert_eq!(self.found(&Expectations::default()), expected);
        }
    }

    /// What a certificate is over: nobody here signs with its key.
    struct Public {
        bytes: Vec<u8>,
        algorithm: &'static SignatureAlgorithm,
    }

    impl PublicKeyData for Public {
        fn der_bytes(&self) -> &[u8] {
            &self.bytes
        }

        fn algorithm(&self) -> &'static SignatureAlgorithm {
            self.algorithm
        }
    }

    struct Issued {
        certificate: Certificate,
        chain: Vec<CertificateDer<'static>>,
        purpose: Purpose,
    }

    impl Issued {
        fn found(&self, expectations: &Expectations, now: SystemTime) -> Vec<(Level, &'static str)> {
            let subject = Subject { certificate: &self.certificate, chain: &self.chain, purpose: self.purpose };
            judge(&subject, expectations, now).into_iter().map(|issue| (issue.level, issue.code)).collect()
        }
    }

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    #[test]
    fn certificates_without_fault_have_no_issue() {
        Draft::qwac().finds(&[]);
        Draft::seal().finds(&[]);
        for usages in [vec![KeyUsagePurpose::DigitalSignature], Vec::new()] {
            let mut draft = Draft::seal();
            draft.params.key_usages = usages;
            draft.finds(&[]);
        }
        let mut draft = Draft::qwac();
        draft.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        draft.finds(&[]);
    }

    #[test]
    fn the_time_is_judged_by_the_clock_that_is_given() {
        let issued = Draft::seal().issued();
        let at = |now: SystemTime| issued.found(&Expectations::default(), now);
        let end = now() + 365 * DAY;
        assert_eq!(at(now() - 2 * DAY), [(Level::Error, "not-yet-valid")]);
        assert_eq!(at(end - 30 * DAY), []);
        assert_eq!(at(end - 30 * DAY + Duration::from_secs(1)), [(Level::Warning, "expires-soon")]);
        assert_eq!(at(end), [(Level::Warning, "expires-soon")]);
        assert_eq!(at(end + Duration::from_secs(1)), [(Level::Error, "expired")]);
    }

    #[test]
    fn statements_that_are_missing_or_unreadable_have_their_codes() {
        let mut none = Draft::seal();
        none.statements = QcStatements::default();
        none.finds(&[(Level::Warning, "not-qualified")]);
        let mut malformed = Draft::seal();
        malformed.statements = QcStatements::default();
        let extension = CustomExtension::from_oid_content(qcstatements::EXTENSION, vec![0x30, 0x03, 0x02]);
        malformed.params.custom_extensions.push(extension);
        malformed.finds(&[(Level::Warning, "malformed-statements")]);
        let mut device = Draft::seal();
        device.statements.sscd = true;
        device.finds(&[(Level::Note, "qualified-device")]);
    }

    #[test]
    fn roles_that_are_stated_are_errors_however_they_are_missing() {
        let stated = Expectations { roles: vec![Role::AccountInformation], ..Expectations::default() };
        let needed = |is_named| {
            let needed = vec![Need { role: Role::CardIssuing, what: "/funds-confirmations".into(), is_named }];
            Expectations { needed, ..Expectations::default() }
        };
        assert_eq!(Draft::qwac().found(&stated), []);
        for is_named in [false, true] {
            assert_eq!(Draft::qwac().found(&needed(is_named)), [(Level::Warning, "role-missing-for-route")]);
        }
        let none = || {
            let mut none = Draft::seal();
            none.statements.psd2 = None;
            none
        };
        assert_eq!(none().found(&needed(false)), [(Level::Warning, "no-psd2-statement")]);
        assert_eq!(none().found(&needed(true)).len(), 2);
        assert_eq!(none().found(&stated), [(Level::Error, "role-missing"), (Level::Warning, "no-psd2-statement")]);
        let mut malformed = Draft::seal();
        malformed.statements = QcStatements::default();
        malformed.params.custom_extensions =
            vec![CustomExtension::from_oid_content(qcstatements::EXTENSION, vec![0x30, 0x03, 0x02])];
        assert_eq!(
            malformed.found(&stated),
            [(Level::Error, "role-missing"), (Level::Warning, "malformed-statements")]
        );
    }

    #[test]
    fn an_organisation_must_be_named_and_its_authority_the_same() {
        let named = |name: Option<&str>| {
            let mut draft = Draft::seal();
            draft.params.distinguished_name.remove(DnType::CustomDnType(vec![2, 5, 4, 97]));
            if let Some(name) = name {
                draft.params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 97]), name);
            }
            draft
        };
        named(None).finds(&[(Level::Warning, "no-organization-identifier")]);
        named(Some("PSDFR-ACP-12345")).finds(&[(Level::Warning, "two-authorities")]);
        named(Some("PSDFR-ACPRX-12345")).finds(&[(Level::Warning, "two-authorities")]);
        named(Some("PSDDE-BAFIN-12345")).finds(&[(Level::Warning, "two-authorities")]);
        // Since V1.5.1 of TS 119 495 other schemes may name the organisation.
        named(Some("VATFR-12345")).finds(&[]);
        let stated = Expectations { authorisation: Some("PSDFR-ACPR-12345".into()), ..Expectations::default() };
        assert_eq!(named(Some("PSDFR-ACPR-12345")).found(&stated), []);
        let issues = named(None).found(&stated);
        assert_eq!(issues, [(Level::Warning, "no-organization-identifier"), (Level::Error, "other-authorisation")]);
        let other = named(Some("PSDFR-ACPR-54321")).issued().certificate;
        let issue = judge_together(&Draft::qwac().issued().certificate, &other).unwrap();
        assert!(issue.reason.contains("PSDFR-ACPR-12345") && issue.reason.contains("PSDFR-ACPR-54321"), "{issue:?}");
        assert_eq!(judge_together(&other, &other), None);
    }

    #[test]
    fn a_competent_authority_s_id_has_a_form() {
        for (id, legal) in
            [("FR-ACPR", true), ("FRACPR", false), ("fr-ACPR", false), ("FR-A", false), ("FR-ACPRACPRA", false)]
        {
            assert_eq!(is_nca_id(id), legal, "{id}");
        }
    }

    #[test]
    fn a_certificate_that_vouches_for_itself_is_noticed() {
        let own = key();
        let mut draft = Draft::qwac();
        draft.statements = QcStatements::default();
        let der = draft.params.self_signed(&own).unwrap().der().clone();
        let issued = Issued {
            certificate: Certificate::from_der(der.clone()).unwrap(),
            chain: vec![der],
            purpose: Purpose::Presenting,
        };
        let found = issued.found(&Expectations::default(), now());
        assert_eq!(found, [(Level::Warning, "self-signed"), (Level::Warning, "not-qualified")]);
    }

    #[test]
    fn a_key_that_is_too_large_to_sign_with_is_noticed() {
        for (bytes, expected) in [(512, &[][..]), (513, &[(Level::Warning, "large-key")])] {
            let mut draft = Draft::seal();
            let bytes = yasna::construct_der(|writer| {
                writer.write_sequence(|writer| {
                    writer.next().write_bigint_bytes(&vec![0xff; bytes], true);
                    writer.next().write_u32(65537);
                });
            });
            draft.key = Public { bytes, algorithm: &PKCS_RSA_SHA256 };
            draft.finds(expected);
        }
    }

    #[test]
    fn a_key_id_is_compared_where_it_has_the_form_of_a_fingerprint() {
        let seal = Draft::seal().issued().certificate;
        let code = |key_id: &str| judge_key_id(key_id, &seal).map(|issue| issue.code);
        let own = seal.sha1_hex();
        assert_eq!(code(&own), None);
        assert_eq!(code(&own.to_uppercase()), Some("key-id-in-capitals"));
        let colons = |key_id: &str| {
            key_id.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect::<Vec<_>>().join(":")
        };
        assert_eq!(code(&colons(&own)), Some("key-id-with-colons"));
        assert_eq!(code(&colons(&own.to_uppercase())), Some("key-id-with-colons"), "as OpenSSL prints it");
        assert_eq!(code(&colons(&"0".repeat(40))), Some("key-id-of-another-certificate"));
        assert_eq!(code(&own[1..]), None);
        assert_eq!(code("https://paiements.example/qsealc.pem"), None);
        let other = judge_key_id(&"0".repeat(40), &seal).unwrap();
        assert_eq!((other.level, other.code), (Level::Warning, "key-id-of-another-certificate"));
        assert!(other.reason.contains(&own) && other.reason.contains(&"0".repeat(40)), "{other:?}");
    }

    #[test]
    fn an_issuer_is_a_name_and_a_key() {
        let by = |name: &str, names_the_key: bool| {
            let mut draft = Draft::qwac();
            draft.params.use_authority_key_identifier_extension = names_the_key;
            draft.issued_by(name).certificate
        };
        let held = by("Confiance", true);
        let said = |new: &Certificate| judge_issuer(new, &held).map(|issue| (issue.level, issue.code, issue.reason));
        assert_eq!(said(&held), None);
        // Each has a new key.
        let (level, code, reason) = said(&by("Confiance", true)).unwrap();
        assert_eq!((level, code), (Level::Note, "issuer-changed"));
        assert!(reason.contains("by another key of CN=Confiance"), "{reason}");
        assert_eq!(said(&by("Confiance", false)), None, "it does not say which");
        let (.., reason) = said(&by("Autre", false)).unwrap();
        assert!(reason.contains("by CN=Autre, the one before it by CN=Confiance"), "{reason}");
    }

    #[test]
    fn an_environment_has_its_certificates() {
        let named = |name: &str| {
            let mut draft = Draft::seal();
            draft.params.distinguished_name.push(DnType::CommonName, name);
            draft.issued().certificate
        };
        for name in ["Sandbox CA", "tpp.test", "UAT2", "paiements-preprod", "Recette"] {
            let code = judge_environment(&named(name), true).map(|issue| issue.code);
            assert_eq!(code, Some("test-certificate-in-production"), "{name}");
            assert_eq!(judge_environment(&named(name), false), None, "{name}");
        }
        for name in ["Testa Pagamenti", "Contest SA", "Demos Bank", "tpp.paiements.fr"] {
            assert_eq!(judge_environment(&named(name), true), None, "{name}");
            let code = judge_environment(&named(name), false).map(|issue| issue.code);
            assert_eq!(code, Some("qualified-certificate-in-sandbox"), "{name}");
        }
        let mut plain = Draft::seal();
        plain.statements.compliance = false;
        assert_eq!(judge_environment(&plain.issued().certificate, false), None);
    }
}
