//! Revocation of our own certificates, with OpenSSL as the authority that issues, revokes and answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use prometheus::{Encoder as _, Registry, TextEncoder};
use rustls::pki_types::CertificateDer;
use sealproxy::app::revocation::{self, Name, Record, Records, Revocation, Watched};
use sealproxy::config::{self, Ocsp};
use sealproxy::identity::certificate::Fingerprint;
use sealproxy::identity::pem;
use sealproxy::identity::revocation::{ChainError, CrlError, Issued, OcspError, Verdict, crls};
use sealproxy::log::{Log, Writer};
use sealproxy::upstream::Via;
use tokio::sync::watch;

use crate::outside::{free_port, output, present};
use crate::rotation::status;
use crate::support::{Act, FakeBank, Lines, Manner, Rig, Running, file_config, folder, kit, ok, tls, until};
use crate::way::{ESTABLISHED, Egress};

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

    /// OpenSSL as the responder, until the value is dropped.
    fn responder(&self, address: SocketAddr) -> Running {
        let mut process = Command::new("openssl")
            .current_dir(&self.folder)
            .args([
                "ocsp",
                "-index",
                "index.txt",
                "-CA",
                "ca.pem",
                "-rsigner",
                "ca.pem",
                "-rkey",
                "ca.key",
                "-ndays",
                "1",
            ])
            .args(["-port", &address.port().to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl starts");
        // A connection to see whether it listens would hold it up for good.
        let mut line = [0; "ACCEPT".len()];
        process.stdout.as_mut().expect("piped").read_exact(&mut line).expect("it says where it listens");
        assert_eq!(&line, b"ACCEPT");
        Running(process)
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
        // The list is made a moment after `now`.
        assert!(until > now + DAY / 2 && until <= SystemTime::now() + DAY, "{until:?}");
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

/// The background task with log and metrics of its own.
struct Watching {
    revocation: Revocation,
    verdicts: watch::Receiver<Records>,
    registry: Registry,
    log: Lines,
    _writer: Writer,
}

impl Watching {
    fn start() -> Self {
        let (registry, lines) = (Registry::new(), Lines::default());
        let (log, writer) = Log::start(lines.clone(), 1000).expect("a thread");
        let revocation = revocation::start(&registry, log).expect("each metric has a name of its own");
        Self { verdicts: revocation.verdicts(), revocation, registry, log: lines, _writer: writer }
    }

    /// Waits for a record of the one certificate that is watched.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        let wanted = |records: &Records| records.of_identity("main").get("qwac").is_some_and(|record| wanted(record));
        let found = tokio::time::timeout(Duration::from_secs(30), self.verdicts.wait_for(wanted)).await;
        let found = found.map(|records| records.expect("the task lives").of_identity("main")["qwac"].clone());
        found.unwrap_or_else(|_| panic!("{what} is waited for\n{}", self.log.text()))
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("text");
        let text = String::from_utf8(text).expect("text");
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{identity=\"main\",use=\"qwac\"}} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
    }
}

fn name() -> Name {
    Name { identity: "main".into(), part: "qwac".into() }
}

fn watched(authority: &Authority, crl: &[&Path], ocsp: Ocsp) -> Watched {
    let crl = crl.iter().map(|file| (*file).to_owned()).collect();
    // The configuration would not allow so short a rhythm.
    let every = Duration::from_millis(200);
    Watched {
        name: name(),
        chain: authority.chain("ours"),
        settings: config::Revocation { crl, ocsp, every, via: None, stops: true },
    }
}

fn at(address: SocketAddr) -> Ocsp {
    Ocsp::At(format!("http://{address}/").parse().expect("a URL"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_noticed_by_ocsp_and_outlives_the_responder() {
    if !present(&["openssl"]) {
        return;
    }
    let authority = Authority::new(&P256.join(" "));
    authority.issue("ours", "leaf", &[]);
    let address = free_port();
    let responder = authority.responder(address);
    let mut watching = Watching::start();
    watching.revocation.update(vec![watched(&authority, &[], at(address))]);
    watching.until("good", |record| record.word() == "good").await;
    assert_eq!(watching.metric("sealproxy_certificate_revoked"), Some(0.0));
    drop(responder);
    authority.revoke("ours", "keyCompromise");
    let responder = authority.responder(address);
    watching.until("revoked", Record::is_revoked).await;
    let known = watching.verdicts.borrow().revoked("main");
    assert_eq!(known, [Fingerprint::of(&authority.chain("ours")[0])].into());
    assert_eq!(watching.metric("sealproxy_certificate_revoked"), Some(1.0));
    drop(responder);
    let record = watching.until("silence", |record| record.failure.is_some()).await;
    assert!(record.is_revoked() && record.failure.as_ref().is_some_and(|text| text.contains("refused")), "{record:?}");
    let checked = watching.metric("sealproxy_revocation_checked_timestamp_seconds").expect("checked");
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("now").as_secs_f64() - checked;
    assert!((0.0..60.0).contains(&age), "{age}");
    assert!(watching.metric("sealproxy_revocation_failures_total") >= Some(1.0));
    let lines = watching.log.wait(3);
    let revoked = lines.iter().find(|line| line["verdict"] == "revoked").expect("a line");
    assert_eq!(
        (&revoked["event"], &revoked["use"], &revoked["reason"]),
        (&"revocation".into(), &"qwac".into(), &"keyCompromise".into())
    );
    // Another certificate takes its place: nothing of the old one is true of it.
    authority.issue("ours", "leaf", &[]);
    watching.revocation.update(vec![watched(&authority, &[], Ocsp::Off)]);
    watching.until("a new record", |record| record.verdict.is_none()).await;
    assert_eq!(watching.metric("sealproxy_certificate_revoked"), None);
    watching.revocation.update(Vec::new());
    assert_eq!(watching.verdicts.borrow_and_update().of_identity("main").len(), 0);
    assert_eq!(watching.verdicts.borrow().revoked("main"), known, "it may be put back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_read_anew_each_time_and_one_of_another_issuer_is_no_failure() {
    if !present(&["openssl"]) {
        return;
    }
    let (authority, stranger) =
        (Authority::new(&P256.join(" ")), Authority::named("Stranger", &P256.join(" "), "keyCertSign,cRLSign"));
    authority.issue("ours", "leaf", &[]);
    authority.crl(&[]);
    stranger.crl(&[]);
    let mut watching = Watching::start();
    let files = [authority.file("list.pem"), stranger.file("list.pem")];
    watching.revocation.update(vec![watched(&authority, &[&files[0], &files[1]], Ocsp::Off)]);
    let record = watching.until("good", |record| record.word() == "good").await;
    assert_eq!((record.failure, watching.metric("sealproxy_revocation_failures_total")), (None, Some(0.0)));
    authority.revoke("ours", "cessationOfOperation");
    authority.crl(&["-out", "next.pem"]);
    std::fs::rename(authority.file("next.pem"), &files[0]).expect("replaced");
    watching.until("revoked", Record::is_revoked).await;
    watching.revocation.update(vec![watched(&authority, &[&files[1]], Ocsp::Off)]);
    let record = watching.until("a failure", |record| record.failure.is_some()).await;
    assert!(record.is_revoked(), "{record:?}");
    assert!(record.failure.expect("words").starts_with("nothing tells of this certificate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_responder_is_reached_through_the_company_s_proxy() {
    if !present(&["openssl"]) {
        return;
    }
    let authority = Authority::new(&P256.join(" "));
    authority.issue("ours", "leaf", &[]);
    let address = free_port();
    let _responder = authority.responder(address);
    let egress = Egress::saying(ESTABLISHED);
    let mut watching = Watching::start();
    let mut through = watched(&authority, &[], at(address));
    let via = |egress: &Egress| {
        let address = egress.address;
        Some(Via { host: address.ip().to_string(), port: address.port(), credentials: None })
    };
    through.settings.via = via(&egress);
    watching.revocation.update(vec![through.clone()]);
    watching.until("good", |record| record.word() == "good").await;
    assert!(egress.asked()[0].starts_with(&format!("CONNECT {address} HTTP/1.1\r\n")));
    let forbidding = Egress::saying("HTTP/1.1 403 Forbidden\r\n\r\n");
    through.settings.via = via(&forbidding);
    watching.revocation.update(vec![through]);
    let failure = watching.until("a failure", |record| record.failure.is_some()).await.failure.expect("words");
    assert!(failure.contains("no way through the company's proxy: the proxy of the setting `via`"), "{failure}");
}

/// Answers one connection with these bytes, once the request is there whole.
fn responder_that_says(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).expect("a request");
            let head = String::from_utf8_lossy(&request[..read]).to_ascii_lowercase();
            assert!(head.starts_with("post /here?x http/1.1\r\nhost: 127.0.0.1:"), "{head}");
            assert!(head.contains("\r\ncontent-type: application/ocsp-request\r\n"), "{head}");
            // Who has heard enough hangs up.
            let _ = stream.write_all(&answer);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responder_that_answers_nonsense_is_a_failure_in_words() {
    if !present(&["openssl"]) {
        return;
    }
    let authority = Authority::new(&P256.join(" "));
    authority.issue("ours", "leaf", &[]);
    let with_length = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    for (answer, words) in [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_vec(), "answered with the status 503"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n".to_vec(), "answered with the status 302"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), "gave no answer in HTTP"),
        (Vec::new(), "gave no answer in HTTP"),
        ([with_length(9), b"<html>404".to_vec()].concat(), "the answer is not an OCSP response"),
        ([with_length(9), b"<html>".to_vec()].concat(), "was cut, or is larger than 64KiB"),
        ([with_length(70_000), vec![b'0'; 70_000]].concat(), "was cut, or is larger than 64KiB"),
        ([with_length(5), vec![0x30, 3, 0x0a, 1, 6]].concat(), "refused to answer: unauthorized"),
    ] {
        let url = format!("http://{}/here?x", responder_that_says(answer));
        let mut watching = Watching::start();
        watching.revocation.update(vec![watched(&authority, &[], Ocsp::At(url.parse().expect("a URL")))]);
        let record = watching.until(words, |record| record.failure.is_some()).await;
        let failure = record.failure.expect("words");
        assert!(failure.starts_with(&format!("{url}: ")) && failure.contains(words), "{failure}");
        assert_eq!((record.verdict, record.checked), (None, None));
        assert_eq!(watching.metric("sealproxy_certificate_revoked"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_said() {
    if !present(&["openssl"]) {
        return;
    }
    let authority = Authority::new(&P256.join(" "));
    authority.issue("ours", "leaf", &[]);
    let no_file = authority.file("none.crl");
    let mut watching = Watching::start();
    watching.revocation.update(vec![watched(&authority, &[&no_file], Ocsp::Off)]);
    let failure = watching.until("no file", |record| record.failure.is_some()).await.failure.expect("words");
    assert!(failure.starts_with(&format!("{}: the file cannot be read", no_file.display())), "{failure}");
    let mut alone = watched(&authority, &[], Ocsp::Named);
    alone.chain.truncate(1);
    watching.revocation.update(vec![alone]);
    let words = "the issuer's certificate does not follow";
    let said = |record: &Record| record.failure.as_ref().is_some_and(|failure| failure.starts_with(words));
    watching.until("no issuer", said).await;
}

/// The whole way: a list on disk, the app, and what callers and probes notice.
#[test]
fn an_identity_whose_certificate_is_revoked_is_used_no_more_where_it_says_so() {
    if !present(&["openssl"]) {
        return;
    }
    for stops in [false, true] {
        let authority = Authority::new("ec -pkeyopt ec_paramgen_curve:P-256");
        authority.issue("ours", "leaf", &[]);
        let chain = ["ours.pem", "ca.pem"].map(|file| std::fs::read_to_string(authority.file(file)).expect("PEM"));
        std::fs::write(authority.file("chain.pem"), chain.concat()).expect("written");
        authority.crl(&[]);
        let tls = tls(kit().path("bank.pem"), kit().path("bank.key"), &authority.file("ca.pem"), rustls::ALL_VERSIONS);
        let bank = FakeBank::with(Manner { tls, ..Manner::good() }, |_| Act::Answer(ok("{}")));
        let text = file_config(bank.address, "", "");
        let text = text
            .replace(&kit().path("qwac.pem").display().to_string(), &authority.file("chain.pem").display().to_string());
        let text = text
            .replace(&kit().path("qwac.key").display().to_string(), &authority.file("ours.key").display().to_string());
        let list = authority.file("list.pem");
        let settings = format!("    revocation: {{ crl: [{}], stops: {stops} }}\n    qsealc:", list.display());
        let rig = Rig::start(&text.replace("    qsealc:", &settings));
        let identity = || status(&rig)["identities"]["main"].clone();
        let judged = |expected: &str| {
            until(expected, Duration::from_secs(10), || identity()["revocation"]["qwac"]["verdict"] == expected);
        };
        let accounts = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
        judged("good");
        assert_eq!(rig.get(accounts).status, 200);
        authority.revoke("ours", "keyCompromise");
        authority.crl(&[]);
        judged("revoked");
        assert!(rig.metrics().contains("sealproxy_certificate_revoked{identity=\"main\",use=\"qwac\"} 1"));
        if stops {
            until("it stops", Duration::from_secs(10), || rig.page("/readyz").status == 503);
        } else {
            std::thread::sleep(Duration::from_millis(300));
        }
        let (answer, ready) = (rig.get(accounts), rig.page("/readyz").status);
        if stops {
            assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (503, "identity-unusable", "not_sent"));
            assert_eq!((ready, bank.received().len()), (503, 1));
            let findings = identity()["findings"].to_string();
            assert!(findings.contains("has been revoked, and `revocation.stops` keeps it"), "{findings}");
            comes_back(&rig, &authority);
        } else {
            assert_eq!((answer.status, ready), (200, 200), "only told");
        }
        until("the log tells of it", Duration::from_secs(10), || {
            rig.log.text().lines().any(|line| line.contains("\"revocation\"") && line.contains("revoked"))
        });
    }
}

/// As OpenSSL writes it: emptied first, filled later. The look that finds it empty goes on to a key that takes its
/// time.
#[test]
fn a_list_that_is_caught_half_written_is_read_when_it_is_whole() {
    if !present(&["openssl"]) {
        return;
    }
    let authority = Authority::new("ec -pkeyopt ec_paramgen_curve:P-256");
    authority.issue("ours", "leaf", &[]);
    std::fs::write(authority.file("pass"), "secret").expect("written");
    let slow = ["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-iter", "100000", "-passout", "file:pass"];
    authority.openssl(&[&slow, &["-in", "ours.key", "-out", "slow.key"]]);
    let chain = ["ours.pem", "ca.pem"].map(|file| std::fs::read_to_string(authority.file(file)).expect("PEM")).concat();
    std::fs::write(authority.file("chain.pem"), &chain).expect("written");
    let whole = authority.crl(&[]);
    let list = authority.file("list.pem");
    let bank = FakeBank::good();
    let of = |name: &str| kit().path(name).display().to_string();
    let at = |name: &str| authority.file(name).display().to_string();
    let pair = format!("{}, passphrase: {}", at("slow.key"), at("pass"));
    let settings = format!("    revocation: {{ crl: [{}] }}\n    qsealc:", list.display());
    let text = file_config(bank.address, "", "")
        .replace(&of("qwac.pem"), &at("chain.pem"))
        .replace(&of("qwac.key"), &pair)
        .replace("    qsealc:", &settings);
    let rig = Rig::start(&text);
    let record = || status(&rig)["identities"]["main"]["revocation"]["qwac"].clone();
    for round in 1..=3 {
        let told = rig.log.text().matches("\"use\":\"qwac\"").count();
        std::fs::write(authority.file("chain.pem"), chain.clone() + &"\n".repeat(round)).expect("written");
        std::fs::write(&list, "").expect("written");
        // The page tells of it only when the look is over.
        until("it is caught", Duration::from_secs(20), || rig.log.text().matches("\"use\":\"qwac\"").count() > told);
        std::fs::write(&list, &whole).expect("written");
        // A check that failed is repeated after a minute.
        until("it is read again", Duration::from_secs(20), || {
            let record = record();
            record["verdict"] == "good" && record["failure"].is_null()
        });
    }
}

/// A successor is taken at once, and the revoked one never again: what is held is not given up for it.
fn comes_back(rig: &Rig, authority: &Authority) {
    let files = ["chain.pem", "ours.key"].map(|file| authority.file(file));
    let revoked = files.clone().map(|file| std::fs::read(file).expect("read"));
    let status = || -> serde_json::Value {
        let page = rig.page("/status");
        serde_json::from_str(&page.body).expect("JSON")
    };
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !is_so() {
            assert!(std::time::Instant::now() < deadline, "{what}: {}", status());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let accounts = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
    authority.issue("ours", "leaf", &[]);
    let chain = ["ours.pem", "ca.pem"].map(|file| std::fs::read_to_string(authority.file(file)).expect("PEM"));
    std::fs::write(&files[0], chain.concat()).expect("written");
    until("the successor", &|| rig.get(accounts).status == 200);
    let used = status()["upstreams"]["bank"]["qwac_sha256"].clone();
    for (file, bytes) in files.iter().zip(revoked) {
        std::fs::write(file, bytes).expect("written");
    }
    until("it is refused", &|| status()["last_reload"].to_string().contains("has been revoked"));
    assert_eq!((rig.get(accounts).status, &status()["upstreams"]["bank"]["qwac_sha256"]), (200, &used));
}

/// A job that fetches the list and hangs up at once; and `stops`, which is written down when it is too late.
#[test]
fn a_hang_up_overlooks_no_list_and_may_stop_what_is_revoked() {
    if !present(&["openssl"]) {
        return;
    }
    for stops in [true, false] {
        let authority = Authority::new("ec -pkeyopt ec_paramgen_curve:P-256");
        authority.issue("ours", "leaf", &[]);
        let chain = ["ours.pem", "ca.pem"].map(|file| std::fs::read_to_string(authority.file(file)).expect("PEM"));
        std::fs::write(authority.file("chain.pem"), chain.concat()).expect("written");
        authority.crl(&[]);
        let tls = tls(kit().path("bank.pem"), kit().path("bank.key"), &authority.file("ca.pem"), rustls::ALL_VERSIONS);
        let bank = FakeBank::with(Manner { tls, ..Manner::good() }, |_| Act::Answer(ok("{}")));
        let text = file_config(bank.address, "", "");
        let of = |name: &str| kit().path(name).display().to_string();
        let text = text.replace(&of("qwac.pem"), &authority.file("chain.pem").display().to_string());
        let text = text.replace(&of("qwac.key"), &authority.file("ours.key").display().to_string());
        let settings = |stops: bool| {
            let list = authority.file("list.pem");
            let revocation = format!("    revocation: {{ crl: [{}], stops: {stops} }}\n    qsealc:", list.display());
            text.replace("    qsealc:", &revocation)
        };
        let (rig, config) = Rig::start_with_file(&settings(stops));
        let accounts = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
        assert_eq!(rig.get(accounts).status, 200);
        authority.revoke("ours", "keyCompromise");
        authority.crl(&[]);
        std::fs::write(&config, settings(true)).expect("written");
        rig.reload();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while rig.get(accounts).status != 503 {
            assert!(std::time::Instant::now() < deadline, "it is used though it is revoked: {}", rig.log.text());
            if !stops {
                rig.reload();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// As `openssl` and a provider's download leave them: none stops an identity, and each is said.
#[test]
fn check_says_which_source_of_revocation_tells_nothing() {
    if !present(&["openssl"]) {
        return;
    }
    let bank = FakeBank::good();
    let (ours, other) = (Authority::new(&P256.join(" ")), Authority::named("Other", &P256.join(" "), "cRLSign"));
    ours.issue("ours", "leaf", &[]);
    let chain = ["ours.pem", "ca.pem"].map(|file| std::fs::read_to_string(ours.file(file)).expect("PEM"));
    std::fs::write(ours.file("chain.pem"), chain.concat()).expect("written");
    std::fs::write(ours.file("garbage.crl"), "garbage").expect("written");
    let text = file_config(bank.address, "", "");
    let text = text
        .replace(&kit().path("qwac.pem").display().to_string(), &ours.file("chain.pem").display().to_string())
        .replace(&kit().path("qwac.key").display().to_string(), &ours.file("ours.key").display().to_string());
    ours.crl(&[]);
    other.crl(&[]);
    let good = ours.file("list.pem");
    let found = |settings: &str, code: Option<i32>| {
        let file = ours.file("sealproxy.yaml");
        std::fs::write(&file, text.replace("    qsealc:", &format!("    revocation: {settings}\n    qsealc:")))
            .expect("written");
        let mut check = Command::new(env!("CARGO_BIN_EXE_sealproxy"));
        let checked = check.args(["check", "--json", "--config"]).arg(&file).output().expect("it starts");
        let document: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON");
        assert_eq!(checked.status.code(), code, "{document:#}");
        let findings = document["findings"].as_array().expect("a list").iter();
        let own = findings.filter(|finding| {
            finding["key"].as_str().is_some_and(|key| key.contains("revocation")) && finding["level"] == "warning"
        });
        own.filter_map(|finding| finding["code"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let list = |name: &Path| format!("{{ crl: [{}], ocsp: \"http://127.0.0.1:9/\" }}", name.display());
    assert_eq!(found("{}", Some(0)), ["no-revocation-source"]);
    assert_eq!(found(&list(&ours.file("absent.crl")), Some(0)), ["unreadable-crl"]);
    assert_eq!(found(&list(&ours.file("garbage.crl")), Some(0)), ["unreadable-crl"]);
    assert_eq!(found(&list(&other.file("list.pem")), Some(0)), ["unrelated-crl"]);
    assert!(found(&list(&good), Some(0)).is_empty());
    // The seal is another issuer's, and nobody tells of it.
    assert_eq!(found(&format!("{{ crl: {} }}", good.display()), Some(0)), ["no-revocation-source"]);
    ours.crl(&["-crl_lastupdate", "20200101000000Z", "-crl_nextupdate", "20200102000000Z"]);
    assert_eq!(found(&list(&good), Some(0)), ["crl-out-of-date"]);
    ours.revoke("ours", "keyCompromise");
    ours.crl(&[]);
    assert_eq!(found(&list(&good), Some(0)), ["revoked"]);
}
