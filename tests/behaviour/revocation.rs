//! Revocation of our own certificates, with OpenSSL as the authority that issues, revokes and answers.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use sealproxy::identity::pem;
use sealproxy::identity::revocation::{ChainError, CrlError, Issued, OcspError, Verdict, crls};

use crate::outside::{output, present};
use crate::support::folder;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// `openssl ca` over a folder.
struct Authority {
    folder: PathBuf,
}

impl Authority {
    fn new(key: &str) -> Self {
        Self::named("Test QTSP", key, "keyCertSign,cRLSign")
    }

    fn named(name: &str, key: &str, usage: &str) -> Self {
        let authority = Self { folder: folder("authority") };
        let write = |file: &str, text: &str| std::fs::write(authority.file(file), text).expect("a file");
        write("index.txt", "");
        write("serial", "00F1\n");
        write("crlnumber", "01\n");
        write("ca.cnf", CONFIGURATION);
        authority.openssl(&[
            &["req", "-x509", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650", "-newkey"],
            key.split(' ').collect::<Vec<_>>().as_slice(),
            &["-subj", &format!("/CN={name}"), "-addext", &format!("keyUsage=critical,{usage}")],
        ]);
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn openssl(&self, arguments: &[&[&str]]) -> Vec<u8> {
        output(Command::new("openssl").current_dir(&self.folder).args(arguments.concat()))
    }

    /// Issues `name`.pem and `name`.key with the extensions of a section.
    fn issue(&self, name: &str, section: &str, more: &[&str]) -> Issued {
        let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        self.openssl(&[&["req", "-nodes", "-keyout", &key, "-out", &request, "-subj", &subject, "-newkey"], &P256]);
        let issue = ["ca", "-config", "ca.cnf", "-batch", "-notext", "-in", &request, "-out", &certificate];
        self.openssl(&[&issue, &["-extensions", section], more]);
        Issued::from_chain(&self.chain(name)).expect("issued by this authority")
    }

    /// A certificate that the index does not know.
    fn issue_unrecorded(&self) -> Issued {
        self.openssl(&[&["req", "-nodes", "-keyout", "un.key", "-out", "un.csr", "-subj", "/CN=un", "-newkey"], &P256]);
        self.openssl(&[
            &["x509", "-req", "-in", "un.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "77"],
            &["-days", "9", "-out", "un.pem"],
        ]);
        Issued::from_chain(&self.chain("un")).expect("issued by this authority")
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        ["ca", name]
            .iter()
            .rev()
            .flat_map(|name| pem::read_chain(&self.file(&format!("{name}.pem"))).expect("a chain"))
            .collect()
    }

    fn revoke(&self, name: &str, reason: &str) {
        let certificate = format!("{name}.pem");
        self.openssl(&[&["ca", "-config", "ca.cnf", "-revoke", &certificate, "-crl_reason", reason]]);
    }

    /// A CRL of now, valid for a day.
    fn crl(&self, more: &[&str]) -> Vec<u8> {
        self.openssl(&[&["ca", "-config", "ca.cnf", "-gencrl", "-out", "list.pem"], more]);
        std::fs::read(self.file("list.pem")).expect("a list")
    }

    /// An answer of `signer`, valid for a day, to the request for a certificate.
    fn answer(&self, issued: &Issued, signer: &str, more: &[&str]) -> Vec<u8> {
        std::fs::write(self.file("request.der"), issued.ocsp_request()).expect("a file");
        let (certificate, key) = (format!("{signer}.pem"), format!("{signer}.key"));
        let files = ["ocsp", "-index", "index.txt", "-CA", "ca.pem", "-reqin", "request.der", "-respout", "answer.der"];
        self.openssl(&[&files, &["-rsigner", &certificate, "-rkey", &key, "-ndays", "1"], more]);
        std::fs::read(self.file("answer.der")).expect("an answer")
    }
}

const P256: [&str; 3] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

const CONFIGURATION: &str = "
[ca]
default_ca = authority
[authority]
database = index.txt
serial = serial
crlnumber = crlnumber
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_days = 90
default_crl_days = 1
policy = any
unique_subject = no
[any]
commonName = supplied
[leaf]
authorityInfoAccess = OCSP;URI:http://ocsp.example/here,caIssuers;URI:http://qtsp.example/ca.cer
crlDistributionPoints = URI:http://qtsp.example/1.crl
[responder]
extendedKeyUsage = OCSPSigning
[other]
extendedKeyUsage = clientAuth
[delta]
2.5.29.27 = critical,ASN1:INTEGER:1
[strange]
1.2.3.4 = critical,ASN1:NULL
[first_piece]
issuingDistributionPoint = critical,@first_point
[first_point]
fullname = URI:http://qtsp.example/1.crl
onlyuser = TRUE
[second_piece]
issuingDistributionPoint = critical,@second_point
[second_point]
fullname = URI:http://qtsp.example/2.crl
[indirect]
issuingDistributionPoint = critical,@indirect_point
[indirect_point]
indirectCRL = TRUE
[some]
issuingDistributionPoint = critical,@some_point
[some_point]
onlysomereasons = keyCompromise
[authorities]
issuingDistributionPoint = critical,@authorities_point
[authorities_point]
onlyCA = TRUE
";

fn judge(issued: &Issued, list: &[u8], now: SystemTime) -> Result<Verdict, CrlError> {
    issued.read_crl(&crls(list)?[0], now)
}

fn reason(verdict: Verdict) -> Option<String> {
    match verdict {
        Verdict::Good { .. } => Some("good".into()),
        Verdict::Revoked { since, reason } => {
            let ago = SystemTime::now().duration_since(since).expect("revoked in the past");
            assert!(ago < Duration::from_secs(300), "{ago:?}");
            reason.map(|reason| reason.to_string())
        }
    }
}

#[test]
fn openssl_s_lists_say_who_is_revoked_and_why() {
    if !present(&["openssl"]) {
        return;
    }
    let pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"];
    for (key, more) in [
        (P256.join(" "), &[][..]),
        ("ec -pkeyopt ec_paramgen_curve:P-384".into(), &["-md", "sha384"]),
        ("rsa:2048".into(), &["-md", "sha512"]),
        ("rsa:2048".into(), &pss),
    ] {
        let authority = Authority::new(&key);
        let (ours, theirs) = (authority.issue("ours", "leaf", &[]), authority.issue("theirs", "leaf", &[]));
        assert_eq!(ours.responder(), Some("http://ocsp.example/here"));
        assert_eq!(ours.distribution_points(), ["http://qtsp.example/1.crl"]);
        let now = SystemTime::now();
        let empty = judge(&ours, &authority.crl(more), now).expect("a sound list");
        let Verdict::Good { until } = empty else { panic!("{empty:?}") };
        assert!(until > now + DAY / 2 && until <= now + DAY, "{until:?}");
        authority.revoke("theirs", "superseded");
        assert!(matches!(judge(&ours, &authority.crl(more), now), Ok(Verdict::Good { .. })));
        authority.revoke("ours", "keyCompromise");
        let list = authority.crl(more);
        let der = &crls(&list).expect("a list")[0];
        assert_eq!(reason(ours.read_crl(der, now).expect("a sound list")).as_deref(), Some("keyCompromise"));
        assert_eq!(reason(theirs.read_crl(der, now).expect("a sound list")).as_deref(), Some("superseded"));
    }
}

#[test]
fn lists_that_prove_nothing_are_refused_in_words() {
    if !present(&["openssl"]) {
        return;
    }
    let authority = Authority::new(&P256.join(" "));
    let (ours, now) = (authority.issue("ours", "leaf", &[]), SystemTime::now());
    let namesake = Authority::new(&P256.join(" "));
    let stranger = Authority::named("Stranger", &P256.join(" "), "keyCertSign,cRLSign");
    let list = authority.crl(&[]);
    assert_eq!(judge(&ours, &list, now + 2 * DAY), Err(CrlError::Stale));
    assert_eq!(judge(&ours, &list, now - DAY), Err(CrlError::NotYet));
    assert!(matches!(judge(&ours, &namesake.crl(&[]), now), Err(CrlError::Signature(_))));
    assert_eq!(judge(&ours, &stranger.crl(&[]), now), Err(CrlError::OtherIssuer));
    assert!(matches!(judge(&ours, &authority.crl(&["-md", "sha1"]), now), Err(CrlError::Signature(_))));
    let extended = |section| judge(&ours, &authority.crl(&["-crlexts", section]), now);
    assert_eq!(extended("delta"), Err(CrlError::Delta));
    assert_eq!(extended("strange"), Err(CrlError::Critical("1.2.3.4".into())));
    assert_eq!(extended("indirect"), Err(CrlError::Indirect));
    assert_eq!(extended("some"), Err(CrlError::SomeReasons));
    assert_eq!(extended("authorities"), Err(CrlError::OtherScope));
    assert_eq!(extended("second_piece"), Err(CrlError::OtherScope));
    assert!(matches!(extended("first_piece"), Ok(Verdict::Good { .. })));
    let powerless = Authority::named("Powerless", &P256.join(" "), "keyCertSign");
    let theirs = powerless.issue("ours", "leaf", &[]);
    // OpenSSL does not mind; RFC 5280 section 6.3.3 (f) does.
    assert_eq!(judge(&theirs, &powerless.crl(&[]), now), Err(CrlError::NotAllowed));
}

#[test]
fn the_issuer_must_stand_in_the_chain_and_have_signed() {
    if !present(&["openssl"]) {
        return;
    }
    let (authority, namesake) = (Authority::new(&P256.join(" ")), Authority::new(&P256.join(" ")));
    authority.issue("ours", "leaf", &[]);
    let ours = authority.chain("ours");
    let other = pem::read_chain(&namesake.file("ca.pem")).expect("a chain");
    assert!(matches!(Issued::from_chain(&ours[..1]), Err(ChainError::NoIssuer)));
    let wrong = [ours[0].clone(), other[0].clone()];
    assert!(matches!(Issued::from_chain(&wrong), Err(ChainError::NotIssued(_))));
    let both = [ours[0].clone(), other[0].clone(), ours[1].clone()];
    assert!(Issued::from_chain(&both).is_ok());
}

#[test]
fn openssl_s_answers_say_who_is_revoked_and_why() {
    if !present(&["openssl"]) {
        return;
    }
    for key in [P256.join(" "), "rsa:2048".into()] {
        let authority = Authority::new(&key);
        let (ours, now) = (authority.issue("ours", "leaf", &[]), SystemTime::now());
        authority.issue("delegate", "responder", &[]);
        for (signer, more) in
            [("ca", &[][..]), ("ca", &["-resp_key_id"]), ("delegate", &[]), ("delegate", &["-resp_key_id"])]
        {
            let verdict = ours.read_ocsp(&authority.answer(&ours, signer, more), now).expect("a sound answer");
            let Verdict::Good { until } = verdict else { panic!("{verdict:?}") };
            assert!(until > now + DAY / 2 && until < now + 2 * DAY, "{until:?}");
        }
        authority.revoke("ours", "certificateHold");
        for signer in ["ca", "delegate"] {
            let verdict = ours.read_ocsp(&authority.answer(&ours, signer, &[]), now).expect("a sound answer");
            assert_eq!(reason(verdict).as_deref(), Some("certificateHold"));
        }
    }
}

#[test]
fn answers_that_prove_nothing_are_refused_in_words() {
    if !present(&["openssl"]) {
        return;
    }
    let authority = Authority::new(&P256.join(" "));
    let (ours, now) = (authority.issue("ours", "leaf", &[]), SystemTime::now());
    let good = authority.answer(&ours, "ca", &[]);
    assert_eq!(ours.read_ocsp(&good, now + 2 * DAY), Err(OcspError::Stale));
    assert_eq!(ours.read_ocsp(&good, now - DAY), Err(OcspError::NotYet));
    let theirs = authority.issue("theirs", "leaf", &[]);
    assert_eq!(theirs.read_ocsp(&good, now), Err(OcspError::OtherId));
    let unrecorded = authority.issue_unrecorded();
    let unknown = authority.answer(&unrecorded, "ca", &[]);
    assert_eq!(unrecorded.read_ocsp(&unknown, now), Err(OcspError::Unknown));
    authority.issue("other", "other", &[]);
    let answered = |signer: &str, more: &[&str], now| ours.read_ocsp(&authority.answer(&ours, signer, more), now);
    assert_eq!(answered("other", &[], now), Err(OcspError::NotForOcsp));
    authority.issue("delegate", "responder", &["-days", "3"]);
    assert_eq!(answered("delegate", &["-ndays", "30"], now + 4 * DAY), Err(OcspError::ResponderExpired));
    assert_eq!(answered("delegate", &["-resp_no_certs"], now), Err(OcspError::UnknownResponder));
    // An authority of the same name, and its delegate: what they sign is not the issuer's.
    let namesake = Authority::new(&P256.join(" "));
    namesake.issue("false", "responder", &[]);
    for file in ["ca", "false"] {
        for end in ["pem", "key"] {
            let to = authority.file(&format!("namesake-{file}.{end}"));
            std::fs::copy(namesake.file(&format!("{file}.{end}")), to).expect("a copy");
        }
    }
    assert!(matches!(answered("namesake-ca", &[], now), Err(OcspError::Signature(_))));
    assert!(matches!(answered("namesake-false", &[], now), Err(OcspError::NotDelegated(_))));
    assert!(matches!(answered("ca", &["-rmd", "sha1"], now), Err(OcspError::Signature(_))));
    assert_eq!(ours.read_ocsp(&[0x30, 3, 0x0a, 1, 3], now), Err(OcspError::Refused("tryLater")));
}

#[test]
fn damaged_lists_and_answers_never_panic_and_are_never_good() {
    if !present(&["openssl"]) {
        return;
    }
    let authority = Authority::new(&P256.join(" "));
    let (ours, now) = (authority.issue("ours", "leaf", &[]), SystemTime::now());
    authority.issue("delegate", "responder", &[]);
    authority.revoke("ours", "superseded");
    let list = crls(&authority.crl(&[])).expect("a list").remove(0);
    let answer = authority.answer(&ours, "delegate", &[]);
    let good = |verdict: Option<Verdict>| verdict.is_some_and(|verdict| !verdict.is_revoked());
    for at in 0..list.len().max(answer.len()) {
        for value in [0, 1, 0x30, 0x7f, 0x80, 0x84, 0xff] {
            let damaged = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                let at = at % bytes.len();
                bytes[at] = value;
                bytes
            };
            assert!(!good(ours.read_crl(&damaged(&list), now).ok()), "{at} {value}");
            assert!(!good(ours.read_ocsp(&damaged(&answer), now).ok()), "{at} {value}");
        }
        assert!(ours.read_crl(&list[..at.min(list.len() - 1)], now).is_err(), "{at}");
        assert!(ours.read_ocsp(&answer[..at.min(answer.len() - 1)], now).is_err(), "{at}");
    }
}
