//! Judges certificates before a bank does: what they are for, whose they are, which roles they carry, how they are issued.
//! Pure; the clock is an argument. Must not know routes, upstreams or HTTP: what those need comes in as expectations.

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
    /// The roles that some path of the bank needs, with that path.
    pub needed: Vec<(Role, String)>,
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

/// Judges a key id that stands in the configuration: the banks make theirs from the certificate.
pub fn judge_key_id(key_id: &str, seal: &Certificate) -> Option<Issue> {
    let is_sha1 = key_id.len() == 40 && key_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let own = seal.sha1_hex();
    (is_sha1 && own != key_id).then(|| {
        let reason =
            format!("the key id {key_id} has the form of a certificate's SHA-1, and that of the QSealC is {own}");
        let hint = "the bank knows another certificate by this name: give the key id that it returned for this one";
        warning("key-id-of-another-certificate", reason, hint)
    })
}

/// Judges whether certificates belong to the environment that they are used in.
pub fn judge_environment(certificate: &Certificate, is_production: bool) -> Option<Issue> {
    let qualified = certificate.qc_statements().ok().flatten().is_some_and(|statements| statements.compliance);
    match (is_production, test_word(certificate)) {
        (true, Some(word)) => {
            let reason = format!("the certificate looks like one for tests ({word}), and the upstream is production");
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

/// A word in the certificate's names that says it is not meant seriously.
fn test_word(certificate: &Certificate) -> Option<&'static str> {
    const WORDS: [&str; 7] = ["sandbox", "test", "demo", "dummy", "uat", "staging", "invalid"];
    let names = format!("{} {}", certificate.subject(), certificate.issuer()).to_lowercase();
    let words: Vec<&str> = names.split(|character: char| !character.is_alphanumeric()).collect();
    WORDS.into_iter().find(|word| words.contains(word))
}

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
                self.error("expired", reason, "install its successor");
            }
            Validity::NotYet => {
                let reason = format!("the certificate is valid only from {}", day(certificate.not_before()));
                self.error("not-yet-valid", reason, "wait, or check this machine's clock");
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

    /// A QSealC need not have any; a QWAC has one, and some authorities leave clientAuth out by now.
    fn extended_usage(&mut self, x509: &X509Certificate<'_>) {
        let Ok(Some(usage)) = x509.extended_key_usage() else { return };
        if self.purpose == Purpose::Presenting && !usage.value.client_auth && !usage.value.any {
            let reason = "its extended key usage does not allow clientAuth".to_owned();
            let hint =
                "banks may refuse it on the TLS connection: ask the trust service provider for one with clientAuth";
            self.warning("qwac-without-client-auth", reason, hint);
        }
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
        for (role, path) in expectations.needed.iter().filter(|(role, _)| !carries(role)) {
            let reason = format!("it does not carry the role {}, which {path} needs", role.name());
            let hint =
                "the bank is going to refuse such requests: take the route away, or get a certificate with the role";
            self.warning("role-missing-for-route", reason, hint);
        }
    }

    /// TS 119 495 section 5.2: the same authority in the statement and in the organizationIdentifier.
    fn authority(&mut self, psd2: &Psd2, certificate: &Certificate) {
        if !is_nca_id(&psd2.nca_id) {
            let reason = format!("the competent authority's id {:?} is not COUNTRY-CODE, such as FR-ACPR", psd2.nca_id);
            return self.warning("malformed-nca-id", reason, "give the certificate as it was issued");
        }
        let named = certificate.organization_identifier().and_then(|id| id.strip_prefix("PSD"));
        if let Some(named) = named
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

/// Says enough of a certificate: what its key may do follows.
const OTHER_TYPE: &str = "other-type";

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
pub(super) const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 3600);

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
