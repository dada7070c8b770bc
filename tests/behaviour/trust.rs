//! What `trust` asks of a bank beyond a valid certificate, pinned keys and revocation lists, and what is said of chains
//! that our TLS library cannot verify. Certificates and lists are made by OpenSSL, which shares no code with us.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::connect::Checked;
use crate::late::Keyboard;
use crate::outside::present;
use crate::support::{Act, Answer, FakeBank, Manner, Rig, config, folder, kit, ok, tls};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

/// A root, an authority below it, and a bank below that.
struct Chain {
    folder: PathBuf,
}

impl Chain {
    fn new() -> Self {
        let chain = Self { folder: folder("chain") };
        let settings = "[ca]\ndefault_ca=a\n[a]\ndatabase=index\ncrlnumber=number\nserial=serial\ndefault_md=sha256\n[v]\n\
                        basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n[req]\ndistinguished_name=d\n[d]\n[p]\ncommonName=supplied\n";
        chain.write("settings", settings);
        chain.write("leaf", "subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n");
        chain.write("authority", "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n");
        chain.write("nameless", "basicConstraints=critical,CA:FALSE\n");
        chain.root(P256);
        chain.issue("middle", "root", "authority");
        chain.issue("bank", "middle", "leaf");
        chain.write("chain.pem", &(chain.read("bank.pem") + &chain.read("middle.pem")));
        chain
    }

    fn key(&self, name: &str, kind: &str) {
        self.openssl(&format!("genpkey -algorithm {kind} -out {name}.key"));
    }

    /// A root with a key of this kind, in place of the one that there was.
    fn root(&self, kind: &str) {
        self.key("root", kind);
        self.openssl("req -x509 -config settings -extensions v -days 20 -subj /CN=root -key root.key -out root.pem");
    }

    fn issue(&self, name: &str, by: &str, extensions: &str) {
        self.key(name, P256);
        self.sign(name, by, &format!("-extfile {extensions}"));
    }

    fn sign(&self, name: &str, by: &str, how: &str) {
        self.openssl(&format!("req -new -config settings -subj /CN={name} -key {name}.key -out {name}.csr"));
        self.openssl(&format!(
            "x509 -req -days 20 -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial {how} -out {name}.pem"
        ));
    }

    /// A certificate that ends at a moment.
    fn sign_until(&self, name: &str, by: &str, end: SystemTime) {
        let end: String = sealproxy::log::timestamp(end).chars().filter(char::is_ascii_digit).take(14).collect();
        self.write("index", "");
        self.openssl(&format!("req -new -config settings -subj /CN={name} -key {name}.key -out {name}.csr"));
        self.openssl(&format!(
            "ca -config settings -batch -notext -policy p -create_serial -outdir . -in {name}.csr -keyfile {by}.key \
             -cert {by}.pem -enddate {end}Z -extfile leaf -out {name}.pem"
        ));
    }

    /// The list of `by`, with these revoked.
    fn revoke(&self, by: &str, revoked: &[&str], more: &str) {
        self.write("index", "");
        self.write("number", "01\n");
        for name in revoked {
            self.openssl(&format!("ca -config settings -keyfile {by}.key -cert {by}.pem -revoke {name}.pem"));
        }
        let days = if more.is_empty() { "-crldays 7" } else { more };
        self.openssl(&format!("ca -config settings -gencrl {days} -keyfile {by}.key -cert {by}.pem -out {by}.crl"));
    }

    fn openssl(&self, arguments: &str) -> String {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.folder)
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).expect("a file");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).expect("a file")
    }

    /// The pin of a certificate's key, by OpenSSL.
    fn pin(&self, name: &str) -> String {
        self.openssl(&format!("x509 -in {name}.pem -noout -pubkey -out {name}.pub"));
        self.openssl(&format!("pkey -pubin -in {name}.pub -outform DER -out {name}.spki"));
        let digest = self.openssl(&format!("dgst -sha256 -r {name}.spki"));
        format!("sha256:{}", digest.split(' ').next().expect("a digest"))
    }

    /// Of a key that is on no path.
    fn pin_of_nobody() -> String {
        format!("sha256:{}", "ab".repeat(32))
    }

    /// A bank that presents these certificates.
    fn presenting(&self, chain: &str) -> FakeBank {
        let ca = kit().path("ca.pem");
        let tls = tls(self.folder.join(chain), self.folder.join("bank.key"), &ca, rustls::ALL_VERSIONS);
        FakeBank::with(Manner { tls, ..Manner::good() }, |_| Act::AnswerAndVanish(ok("{}")))
    }

    /// A configuration that trusts the root, with more to ask.
    fn yaml(&self, bank: &FakeBank, more: &str) -> String {
        self.trusting(bank.address, &format!("{{ roots: {}, {more} }}", path(self, "root.pem")))
    }

    fn trusting(&self, bank: SocketAddr, trust: &str) -> String {
        let usual = format!("trust: {}", kit().path("ca.pem").display());
        config(bank, "", "").replace(&usual, &format!("trust: {trust}"))
    }

    /// OpenSSL as a bank that presents `bank.pem`, and `middle.pem` beside it.
    fn openssl_bank(&self, more: &[&str]) -> Keyboard {
        let (certificate, key, others) = (path(self, "bank.pem"), path(self, "bank.key"), path(self, "middle.pem"));
        let presented = ["-cert", &certificate, "-key", &key, "-cert_chain", &others, "-cipher", "ALL:@SECLEVEL=0"];
        Keyboard::start(&[&presented[..], more].concat())
    }

    fn lists(&self, names: &[&str]) -> String {
        let files: Vec<_> = names.iter().map(|name| self.folder.join(name).display().to_string()).collect();
        format!("crl: [{}]", files.join(", "))
    }
}

/// What most keys are.
const P256: &str = "EC -pkeyopt ec_paramgen_curve:P-256";

fn refused(answer: &Answer, problem: &str) {
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (502, problem, "not_sent"), "{answer:?}");
}

#[test]
fn one_key_of_the_verified_path_must_be_pinned() {
    if !present(&["openssl"]) {
        return;
    }
    let chain = Chain::new();
    let bank = chain.presenting("chain.pem");
    let (leaf, middle, root) = (chain.pin("bank"), chain.pin("middle"), chain.pin("root"));
    for pins in [vec![&leaf], vec![&middle], vec![&root], vec![&Chain::pin_of_nobody(), &middle]] {
        let rig = Rig::start(&chain.yaml(&bank, &format!("pins: {pins:?}")));
        assert_eq!(rig.get(ACCOUNTS).status, 200, "{pins:?}");
    }
    let received = bank.received().len();
    let yaml = chain.yaml(&bank, &format!("pins: [\"{}\"]", Chain::pin_of_nobody()));
    let rig = Rig::start(&yaml);
    let answer = rig.get(ACCOUNTS);
    refused(&answer, "upstream-pin-mismatch");
    assert!(!answer.body.contains("sha256:"), "{answer:?}");
    let cause = rig.log.wait(1)[0]["cause"].as_str().expect("a cause").to_owned();
    for pin in [leaf, middle, root, Chain::pin_of_nobody()] {
        assert!(cause.contains(&pin), "{cause}");
    }
    assert_eq!(bank.received().len(), received);
    assert!(rig.metrics().contains("sealproxy_upstream_failures_total{cause=\"upstream-pin-mismatch\""));
    let checked = Checked::of(&yaml);
    checked.fails(&["none of the keys that are pinned", &Chain::pin_of_nobody(), "Ask the bank, on another way"]);
    checked
        .says("note: ", &["asked for our certificate in the handshake and was not given it, because we do not trust"]);
    checked.says("warning: ", &["certificate 1 of 2: CN=bank, ", &format!(", pin {}", chain.pin("bank"))]);
}

#[test]
fn a_pinned_authority_beside_the_path_does_not_count() {
    if !present(&["openssl"]) {
        return;
    }
    let chain = Chain::new();
    chain.issue("pinned", "root", "authority");
    chain.write("beside.pem", &(chain.read("chain.pem") + &chain.read("pinned.pem")));
    let bank = chain.presenting("beside.pem");
    let rig = Rig::start(&chain.yaml(&bank, &format!("pins: [\"{}\"]", chain.pin("pinned"))));
    refused(&rig.get(ACCOUNTS), "upstream-pin-mismatch");
}

#[test]
fn a_pin_never_makes_an_invalid_certificate_valid() {
    if !present(&["openssl"]) {
        return;
    }
    let (chain, other) = (Chain::new(), Chain::new());
    let bank = chain.presenting("chain.pem");
    let pins = format!("pins: [\"{}\", \"{}\"]", chain.pin("bank"), chain.pin("root"));
    let rig = Rig::start(&other.yaml(&bank, &pins));
    refused(&rig.get(ACCOUNTS), "upstream-untrusted");
    let rig = Rig::start(&chain.yaml(&bank, &pins).replace("https://localhost:", "https://127.0.0.1:"));
    refused(&rig.get(ACCOUNTS), "upstream-wrong-name");
}

/// Two upstreams at one bank, of which one has the pin: the tickets of the one must be of no use to the other.
#[test]
fn a_session_is_resumed_only_where_the_pins_were_checked() {
    if !present(&["openssl"]) {
        return;
    }
    let chain = Chain::new();
    let bank = chain.presenting("chain.pem");
    let yaml = chain.yaml(&bank, &format!("pins: [\"{}\"]", chain.pin("bank")));
    let (before, rest) = yaml.split_once("  bank:\n").expect("an upstream");
    let (upstream, routes) = rest.split_once("routes:\n").expect("routes");
    let strict = upstream.replace(&chain.pin("bank"), &Chain::pin_of_nobody());
    let routes = routes.replace("token, upstream: bank", "token, upstream: strict");
    let rig = Rig::start(&format!("{before}  bank:\n{upstream}  strict:\n{strict}routes:\n{routes}"));
    for _ in 0..3 {
        refused(&rig.request("POST", "/sandbox/becm/oauth2/token", "", ""), "upstream-pin-mismatch");
        assert_eq!(rig.get(ACCOUNTS).status, 200);
    }
    refused(&rig.request("POST", "/sandbox/becm/oauth2/token", "", ""), "upstream-pin-mismatch");
    let resumed: Vec<_> = bank.received().iter().map(|request| request.resumed).collect();
    assert_eq!(resumed, [false, true, true]);
}

#[test]
fn what_a_revocation_list_names_is_refused_and_so_is_what_none_speaks_of() {
    if !present(&["openssl"]) {
        return;
    }
    let chain = Chain::new();
    let bank = chain.presenting("chain.pem");
    let asked = |more: &str| Rig::start(&chain.yaml(&bank, more)).get(ACCOUNTS);
    chain.revoke("root", &[], "");
    chain.revoke("middle", &[], "");
    let both = chain.lists(&["root.crl", "middle.crl"]);
    assert_eq!(asked(&both).status, 200);
    let pinned = format!("{both}, pins: [\"{}\"]", chain.pin("middle"));
    assert_eq!(asked(&pinned).status, 200);
    refused(&asked(&chain.lists(&["root.crl"])), "upstream-revocation-unknown");
    refused(&asked(&chain.lists(&["middle.crl"])), "upstream-revocation-unknown");
    chain.revoke("middle", &["bank"], "");
    refused(&asked(&both), "upstream-revoked");
    refused(&asked(&pinned), "upstream-revoked");
    Checked::of(&chain.yaml(&bank, &both)).fails(&["has been revoked", "Ask the bank before anything is sent there"]);
    chain.revoke("middle", &[], "");
    chain.revoke("root", &["middle"], "");
    refused(&asked(&both), "upstream-revoked");
    // In DER as well, which is how authorities publish them.
    chain.openssl("crl -in root.crl -outform DER -out root.der");
    refused(&asked(&chain.lists(&["root.der", "middle.crl"])), "upstream-revoked");
    // Another's list under the same name: not signed by the issuer.
    let other = Chain::new();
    other.revoke("middle", &[], "");
    chain.revoke("root", &[], "");
    let forged = format!("crl: [{}, {}]", path(&chain, "root.crl"), path(&other, "middle.crl"));
    refused(&asked(&forged), "upstream-revocation-unknown");
}

fn path(chain: &Chain, name: &str) -> String {
    chain.folder.join(name).display().to_string()
}

#[test]
fn a_revocation_list_that_cannot_serve_is_an_error_at_start() {
    if !present(&["openssl"]) {
        return;
    }
    let chain = Chain::new();
    let bank = chain.presenting("chain.pem");
    chain.revoke("root", &[], "-crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z");
    chain.write("none.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    for (name, reason) in [
        ("root.crl", "root.crl: the revocation list of CN=root expired on Thu, 02 Jan 2020 00:00:00 GMT. Fetch the"),
        ("nowhere.crl", "nowhere.crl: the file does not exist. "),
        ("root.pem", "root.pem: there is no revocation list in the file. "),
        ("none.crl", "none.crl: line 1: the block is labelled a revocation list and is none. "),
    ] {
        let checked = Checked::of(&chain.yaml(&bank, &chain.lists(&[name])));
        assert_eq!(checked.code, Some(78), "{}", checked.text);
        let found = checked.text.lines().any(|line| {
            line.starts_with("error: ") && line.contains(": upstreams.bank.trust.crl: ") && line.contains(reason)
        });
        assert!(found, "{name}: {}", checked.text);
    }
    assert_eq!(bank.connections(), 0);
}

/// The one that expires while it is in use.
#[test]
fn a_revocation_list_that_expires_in_the_meantime_refuses_the_next_handshake() {
    if !present(&["openssl"]) {
        return;
    }
    let chain = Chain::new();
    let bank = chain.presenting("chain.pem");
    chain.revoke("root", &[], "");
    // Long enough that a busy machine has started before it is over.
    chain.revoke("middle", &[], "-crlsec 20");
    let rig = Rig::start(&chain.yaml(&bank, &chain.lists(&["root.crl", "middle.crl"])));
    // The bank's tickets must not outlive the list: a resumed session has no chain to judge.
    assert_eq!([rig.get(ACCOUNTS).status, rig.get(ACCOUNTS).status], [200, 200]);
    let metrics = rig.metrics();
    let expiry = metrics.lines().find_map(|line| {
        line.strip_prefix("sealproxy_upstream_crl_expiry_timestamp_seconds{upstream=\"bank\"} ")?.parse().ok()
    });
    let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(expiry.expect("a moment"));
    let left = expiry.duration_since(SystemTime::now()).expect("in the future");
    assert!(left <= Duration::from_secs(20), "the first of the two: {left:?}");
    std::thread::sleep(left + Duration::from_secs(1));
    refused(&rig.get(ACCOUNTS), "upstream-revocation-unknown");
    let line = &rig.log.wait(3)[2];
    assert!(line["cause"].as_str().is_some_and(|cause| cause.contains("expired")), "{line}");
}

/// Under either version of TLS the bank hands out tickets, with which a later session begins without a chain.
#[test]
fn a_bank_s_certificate_that_expires_in_the_meantime_refuses_the_next_handshake() {
    if !present(&["openssl"]) {
        return;
    }
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let chain = Chain::new();
        let end = SystemTime::now() + Duration::from_secs(12);
        chain.sign_until("bank", "middle", end);
        chain.write("chain.pem", &(chain.read("bank.pem") + &chain.read("middle.pem")));
        let (certificates, key) = (chain.folder.join("chain.pem"), chain.folder.join("bank.key"));
        let tls = tls(certificates, key, &kit().path("ca.pem"), &[version]);
        let bank = FakeBank::with(Manner { tls, ..Manner::good() }, |_| Act::AnswerAndVanish(ok("{}")));
        let rig = Rig::start(&chain.trusting(bank.address, &path(&chain, "root.pem")));
        assert_eq!([rig.get(ACCOUNTS).status, rig.get(ACCOUNTS).status], [200, 200]);
        std::thread::sleep(end.duration_since(SystemTime::now()).expect("in time") + Duration::from_secs(2));
        refused(&rig.get(ACCOUNTS), "upstream-expired");
        refused(&rig.get(ACCOUNTS), "upstream-expired");
    }
}

#[test]
fn a_signature_that_our_library_does_not_verify_is_named() {
    if !present(&["openssl"]) {
        return;
    }
    const PSS: &str = "-sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:20";
    let chain = Chain::new();
    for (kind, digest, words) in [
        ("EC -pkeyopt ec_paramgen_curve:P-384", "-sha512", "ECDSA and SHA-512 on P-384"),
        ("EC -pkeyopt ec_paramgen_curve:P-521", "-sha256", "ECDSA and SHA-256 on P-521"),
        ("EC -pkeyopt ec_paramgen_curve:brainpoolP256r1", "-sha256", "ECDSA and SHA-256 on brainpoolP256r1"),
        ("ED448", "", "Ed448"),
        ("RSA -pkeyopt rsa_keygen_bits:1024", "-sha256", "RSA and SHA-256 by a key of 1024 bits"),
        ("RSA -pkeyopt rsa_keygen_bits:2048", "-sha1", "RSA and SHA-1 by a key of 2048 bits"),
        (
            "RSA -pkeyopt rsa_keygen_bits:2048",
            PSS,
            "RSA-PSS and SHA-256 (MGF1 with SHA-256, 20 bytes of salt) by a key of 2048 bits",
        ),
    ] {
        chain.root(kind);
        chain.sign("bank", "root", &format!("-extfile leaf {digest}"));
        let bank = chain.openssl_bank(&[]);
        let yaml = chain.trusting(bank.address, &path(&chain, "root.pem"));
        let words =
            format!("the certificate of CN=bank is signed with {words}, which this build's TLS library does not");
        Checked::of(&yaml).fails(&["cannot be verified: ", &words, "Verified are RSA of 2048 to 8192 bits"]);
        let rig = Rig::start(&yaml);
        let answer = rig.get(ACCOUNTS);
        refused(&answer, "upstream-untrusted");
        assert!(!answer.body.contains("signed"), "{answer:?}");
        assert!(rig.log.wait(1)[0]["cause"].as_str().is_some_and(|cause| cause.contains(&words)), "{}", rig.log.text());
    }
}

#[test]
fn an_authority_that_is_signed_oddly_may_be_trusted_itself() {
    if !present(&["openssl"]) {
        return;
    }
    let chain = Chain::new();
    chain.root("EC -pkeyopt ec_paramgen_curve:P-384");
    chain.sign("middle", "root", "-extfile authority -sha512");
    let mut bank = chain.openssl_bank(&[]);
    let checked = Checked::of(&chain.trusting(bank.address, &path(&chain, "root.pem")));
    checked.fails(&[
        "the certificate of CN=middle is signed with ECDSA and SHA-512 on P-384",
        "If you trust this authority itself, name its certificate in `trust`",
    ]);
    let yaml = chain.trusting(bank.address, &path(&chain, "middle.pem"));
    let checked = std::thread::scope(|scope| {
        let check = scope.spawn(|| Checked::of(&yaml));
        bank.wait("HEAD / HTTP/1.1", 1);
        bank.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        check.join().expect("no panic")
    });
    assert_eq!(checked.code, Some(0), "{}", checked.text);
}

#[test]
fn a_bank_s_own_certificate_that_our_library_does_not_take_is_told_why() {
    if !present(&["openssl"]) {
        return;
    }
    let chain = Chain::new();
    let told = |kind: &str, by: &str, how: &str| {
        chain.key("bank", kind);
        chain.sign("bank", by, how);
        let bank = chain.openssl_bank(&[]);
        Checked::of(&chain.trusting(bank.address, &path(&chain, "root.pem")))
    };
    let small = told("RSA -pkeyopt rsa_keygen_bits:1024", "middle", "-extfile leaf");
    small.fails(&["the key of CN=bank is RSA 1024, whose handshakes this build's TLS library does not verify"]);
    small.says("warning: ", &["certificate 1 of 2: CN=bank, ", " RSA 1024"]);
    let p521 = told("EC -pkeyopt ec_paramgen_curve:P-521", "middle", "-extfile leaf");
    p521.fails(&["no TLS version, cipher suite or protocol in common", "not P-521, brainpool or Ed448"]);
    told(P256, "middle", "").fails(&[
        "CN=bank is of X.509 version 1; ",
        "version 3 alone",
        "X.509 version 1 has no host",
    ]);
    told(P256, "middle", "-extfile authority").fails(&["the certificate of an authority, CN=bank, as its own"]);
    let nameless = told(P256, "middle", "-extfile nameless");
    nameless.fails(&["is for another name", "not valid for any names", "the common name does not count"]);
}
