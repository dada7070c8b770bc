//! `check --connect`: one line for each thing that a connection to the bank shows, and who distrusts whom.

use std::io::BufReader;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::bank_faults::{Stranger, distrustful};
use crate::cli::read_until;
use crate::late::Keyboard;
use crate::outside::{free_port, present, wait_for, which};
use crate::support::{Act, FakeBank, Manner, Running, config, file_config, folder, kit, ok, tls};
use crate::way::{ESTABLISHED, Egress};

const DAY: Duration = Duration::from_secs(24 * 3600);
const ISSUER: &str = "CN=sealproxy sandbox QTSP,O=sealproxy sandbox QTSP,C=FR";

/// What `check --connect` exits with and prints.
pub(crate) struct Checked {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

impl Checked {
    pub(crate) fn of(yaml: &str) -> Self {
        let file = folder("connect").join("sealproxy.yaml");
        std::fs::write(&file, yaml).expect("a file");
        Self::file(file.to_str().expect("UTF-8"))
    }

    fn bank(bank: &FakeBank) -> Self {
        Self::of(&config(bank.address, "", ""))
    }

    fn file(path: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealproxy"));
        let output = command.args(["check", "--connect", "--config", path]).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.lines().all(|line| line.starts_with("connecting to ")), "{said}");
        Self { code: output.status.code(), text: String::from_utf8_lossy(&output.stdout).into_owned() }
    }

    /// A line of this level about the bank holds all of these.
    #[track_caller]
    pub(crate) fn says(&self, level: &str, parts: &[&str]) {
        let lines = self.text.lines().filter(|line| line.starts_with(level) && line.contains(": upstreams.bank: "));
        let found = lines.into_iter().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no {level} with {parts:?} in\n{}", self.text);
    }

    fn levels(&self, level: &str) -> usize {
        self.text.lines().filter(|line| line.starts_with(level)).count()
    }

    /// All is well, and said so at the end.
    #[track_caller]
    fn is_ok(&self) {
        assert_eq!(self.code, Some(0), "{}", self.text);
        assert!(self.text.lines().last().is_some_and(|line| line.starts_with("ok: ")), "{}", self.text);
    }

    /// One error, which holds these, and no word of success.
    #[track_caller]
    pub(crate) fn fails(&self, parts: &[&str]) {
        self.says("error: ", parts);
        assert_eq!((self.code, self.levels("error: "), self.levels("ok: ")), (Some(1), 1, 0), "{}", self.text);
    }
}

/// An answer with this Date.
fn dated(date: SystemTime) -> Vec<u8> {
    let date = httpdate::fmt_http_date(date);
    format!("HTTP/1.1 404 Not Found\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
}

/// A sandbox bank with more arguments, its folder, and what it says of itself.
fn sandbox(arguments: &[&str]) -> (Running, PathBuf, Vec<String>) {
    let folder = folder("connect-sandbox");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sealproxy"))
        .args(["sandbox", "--dir"])
        .arg(&folder)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = read_until(&mut BufReader::new(child.stdout.take().expect("piped")), "config ");
    (Running(child), folder, lines)
}

/// Nobody connects to 0.0.0.0, and no certificate is for it.
#[test]
fn a_sandbox_bank_that_listens_everywhere_is_found_on_loopback() {
    let (_bank, folder, lines) = sandbox(&["--listen", "0.0.0.0:0"]);
    assert!(lines[0].starts_with("bank https://127.0.0.1:"), "{lines:?}");
    Checked::file(folder.join("sealproxy.yaml").to_str().expect("UTF-8")).is_ok();
}

#[test]
fn the_sandbox_bank_passes_without_a_warning() {
    let (_bank, folder, lines) = sandbox(&[]);
    let address = lines[0].strip_prefix("bank https://").expect("an address");
    let checked = Checked::file(folder.join("sealproxy.yaml").to_str().expect("UTF-8"));
    checked.is_ok();
    assert_eq!(checked.levels("warning: "), 0, "{}", checked.text);
    checked.says("note: ", &[&format!("connected to {address} in ")]);
    checked.says("note: ", &["TLS 1.3, TLS13_", ", X25519, ALPN http/1.1; handshake in "]);
    checked.says("note: ", &["certificate 1 of 2: CN=127.0.0.1, issued by ", ISSUER, "days left), EC P-256, "]);
    checked.says("note: ", &["certificate 1 of 2: ", ", for 127.0.0.1, localhost, SHA-256 "]);
    checked.says("note: ", &["asked for our certificate in the handshake and was given the QWAC"]);
    checked.says("note: ", &["accepts certificates of: ", ISSUER]);
    checked.says("note: ", &["our QWAC's issuer ", ISSUER, " is among them"]);
    checked.says("note: ", &["HEAD / answered 404; the bank's clock agrees with ours"]);
}

#[test]
fn one_request_is_sent_and_neither_sealed_nor_authorised() {
    let bank = FakeBank::doing(|_| Act::Answer(dated(SystemTime::now())));
    Checked::bank(&bank).is_ok();
    let request = bank.only();
    assert_eq!(request.request_line(), "HEAD / HTTP/1.1");
    assert_eq!(request.header("host"), Some(&*format!("localhost:{}", bank.address.port())));
    assert_eq!(request.names(), ["host", "user-agent", "accept", "connection"]);
    assert!(request.body.is_empty() && !request.client.is_empty());
    assert_eq!(bank.connections(), 1);
}

#[test]
fn nobody_is_connected_to_unasked_or_with_a_configuration_that_is_refused() {
    let bank = FakeBank::good();
    // It is a file that is missing.
    let yaml = file_config(bank.address, "", "");
    let refused = Checked::of(&yaml.replace("qwac.key", "nowhere.key"));
    assert_eq!(refused.code, Some(78), "{}", refused.text);
    let file = folder("unasked").join("sealproxy.yaml");
    std::fs::write(&file, yaml).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealproxy"));
    let output = command.args(["check", "--config"]).arg(&file).output().expect("it starts");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(bank.connections(), 0);
}

#[test]
fn a_clock_that_is_off_is_a_warning_and_no_error() {
    for (date, expected) in [
        (SystemTime::now() + Duration::from_secs(600), "s ahead of ours"),
        (SystemTime::now() - Duration::from_secs(600), "s behind ours"),
    ] {
        let bank = FakeBank::doing(move |_| Act::Answer(dated(date)));
        let checked = Checked::bank(&bank);
        checked.is_ok();
        checked.says("warning: ", &["the bank's clock is ", expected, "Set this machine's clock"]);
    }
    let undated = Checked::bank(&FakeBank::good());
    undated.is_ok();
    undated.says("note: ", &["HEAD / answered 200 without a Date"]);
}

#[test]
fn a_bank_that_does_not_answer_head_is_a_warning() {
    let checked = Checked::bank(&FakeBank::doing(|_| Act::AnswerAndClose(Vec::new())));
    checked.is_ok();
    checked.says("warning: ", &["HEAD / was not answered: the upstream closed the connection without an answer"]);
}

#[test]
fn openssl_that_asks_for_no_certificate_is_a_warning() {
    if !present(&["openssl"]) {
        return;
    }
    let mut bank = Keyboard::start(&["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"]);
    let yaml = config(bank.address, "", "");
    let checked = std::thread::scope(|scope| {
        let check = scope.spawn(|| Checked::of(&yaml));
        bank.wait("HEAD / HTTP/1.1", 1);
        bank.write(&dated(SystemTime::now()));
        check.join().expect("no panic")
    });
    checked.is_ok();
    checked.says("note: ", &["TLS 1.2, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, X25519, no ALPN; "]);
    checked.says("warning: ", &["has not seen the QWAC. ", "renegotiation", "rustls"]);
}

#[test]
fn openssl_that_renegotiates_for_the_certificate_is_an_error() {
    if !present(&["openssl"]) {
        return;
    }
    let mut bank = Keyboard::start(&["-tls1_2"]);
    let yaml = config(bank.address, "", "");
    let checked = std::thread::scope(|scope| {
        let check = scope.spawn(|| Checked::of(&yaml));
        bank.wait("HEAD / HTTP/1.1", 1);
        bank.write(b"R\n");
        check.join().expect("no panic")
    });
    checked.fails(&["asked to renegotiate TLS", "(rustls)", "must ask for the certificate in the handshake"]);
}

fn openssl(arguments: &[&str], files: &[(&str, &Path)]) {
    let mut command = Command::new("openssl");
    command.args(arguments);
    for (option, file) in files {
        command.arg(option).arg(file);
    }
    let made = command.output().expect("openssl starts");
    assert!(made.status.success(), "{command:?}: {}", String::from_utf8_lossy(&made.stderr));
}

/// Certificate and key by OpenSSL, for 20 days and `localhost`.
fn self_signed(name: &str, algorithm: &str, extensions: &[&str]) -> (PathBuf, PathBuf) {
    let folder = folder("self-signed");
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    let subject = format!("/O=Test/CN={name}");
    let mut arguments = vec!["req", "-x509", "-newkey", algorithm, "-nodes", "-days", "20", "-subj", &subject];
    if algorithm == "ec" {
        arguments.extend(["-pkeyopt", "ec_paramgen_curve:secp521r1"]);
    }
    for extension in ["subjectAltName=DNS:localhost"].iter().chain(extensions) {
        arguments.extend(["-addext", extension]);
    }
    openssl(&arguments, &[("-out", &certificate), ("-keyout", &key)]);
    (certificate, key)
}

/// What is said of an OpenSSL bank with this pair, where `trust` names this file.
fn judged((certificate, key): (&Path, &Path), trust: &Path) -> Checked {
    let text = |path: &Path| path.display().to_string();
    let bank = Keyboard::start(&["-cert", &text(certificate), "-key", &text(key)]);
    let trusted = format!("trust: {}", kit().path("ca.pem").display());
    Checked::of(&config(bank.address, "", "").replace(&trusted, &format!("trust: {}", trust.display())))
}

#[test]
fn certificates_that_our_library_does_not_take_are_told_from_those_that_we_do_not_trust() {
    if !present(&["openssl"]) {
        return;
    }
    // T-x509: an authority's certificate as the bank's own, and version 1.
    let (ca, key) = self_signed("authority", "rsa:2048", &[]);
    judged((&ca, &key), &ca)
        .fails(&["presents the certificate of an authority, CN=authority,O=Test, as its own", "Ask the bank for a"]);
    let folder = folder("fixtures");
    let file = |name: &str| folder.join(name);
    openssl(&["x509", "-x509toreq"], &[("-in", &ca), ("-signkey", &key), ("-out", &file("csr"))]);
    openssl(&["x509", "-req", "-days", "20"], &[("-in", &file("csr")), ("-signkey", &key), ("-out", &file("v1.pem"))]);
    judged((&file("v1.pem"), &key), &file("v1.pem")).fails(&["is of X.509 version 1; ", "X.509 version 1 has no host"]);
    // T-alg: signed on P-521.
    let (ca, ca_key) = self_signed("p521", "ec", &[]);
    std::fs::write(file("extensions"), "subjectAltName=DNS:localhost\n").expect("a file");
    let by = [("-CA", &*ca), ("-CAkey", &ca_key), ("-extfile", &file("extensions")), ("-out", &file("leaf.pem"))];
    openssl(&["x509", "-req", "-days", "20", "-CAcreateserial"], &[&[("-in", &*file("csr"))][..], &by].concat());
    let checked = judged((&file("leaf.pem"), &key), &ca);
    checked.fails(&["signed with ECDSA and SHA-256 on P-521, which this build's TLS library does not verify"]);
}

#[test]
fn openssl_that_names_other_issuers_is_a_warning_and_its_own_certificate_is_told_though_not_trusted() {
    if !present(&["openssl"]) {
        return;
    }
    let (certificate, key) = self_signed("other", "rsa:2048", &["basicConstraints=critical,CA:FALSE"]);
    let (key, certificate) = (key.to_str().expect("UTF-8"), certificate.to_str().expect("UTF-8"));
    let bank = Keyboard::start(&["-cert", certificate, "-key", key]);
    let untrusted = Checked::of(&config(bank.address, "", ""));
    untrusted.fails(&["certificate is not trusted", "UnknownIssuer", "Name in `trust` a PEM file"]);
    untrusted.says(
        "warning: ",
        &["certificate 1 of 1: CN=other,O=Test, issued by CN=other,O=Test", "(19 days left), RSA 2048, for localhost"],
    );
    let mut bank = Keyboard::start(&["-Verify", "2", "-CAfile", certificate]);
    let yaml = config(bank.address, "", "");
    let checked = std::thread::scope(|scope| {
        let check = scope.spawn(|| Checked::of(&yaml));
        bank.wait("HEAD / HTTP/1.1", 1);
        bank.write(&dated(SystemTime::now()));
        check.join().expect("no panic")
    });
    checked.is_ok();
    checked.says("note: ", &["accepts certificates of: CN=other,O=Test"]);
    checked.says("warning: ", &["none of them issued our QWAC, which is of: ", ISSUER]);
    for protocol in ["-tls1_2", "-tls1_3"] {
        let bank = Keyboard::start(&[protocol, "-Verify", "2", "-verify_return_error", "-CAfile", certificate]);
        let checked = Checked::of(&config(bank.address, "", ""));
        checked.fails(&["refused our QWAC with the TLS alert UnknownCA. The bank does not know who issued it"]);
    }
}

#[test]
fn nginx_with_tls_1_2_passes() {
    if !present(&["nginx"]) {
        return;
    }
    let (folder, address) = (folder("connect-nginx"), free_port());
    let path = |name: &str| kit().path(name).display().to_string();
    let conf = format!(
        "daemon off; master_process off; pid {folder}/pid; events {{ worker_connections 64; }}
http {{ access_log {folder}/access.log; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen {address} ssl; ssl_protocols TLSv1.2; ssl_certificate {bank}; ssl_certificate_key {key};
    ssl_client_certificate {ca}; ssl_verify_client on; location / {{ return 204; }} }} }}",
        folder = folder.display(),
        bank = path("bank.pem"),
        key = path("bank.key"),
        ca = path("ca.pem"),
    );
    std::fs::write(folder.join("nginx.conf"), conf).expect("a file");
    let nginx = Command::new(which("nginx").expect("nginx is present"))
        .arg("-e")
        .arg(folder.join("error.log"))
        .arg("-c")
        .arg(folder.join("nginx.conf"))
        .spawn()
        .expect("nginx starts");
    let _nginx = Running(nginx);
    wait_for(address);
    let checked = Checked::of(&config(address, "", ""));
    checked.is_ok();
    assert_eq!(checked.levels("warning: "), 0, "{}", checked.text);
    checked.says("note: ", &["TLS 1.2, TLS_ECDHE_ECDSA_WITH_", "ALPN http/1.1"]);
    checked.says("note: ", &["our QWAC's issuer ", " is among them"]);
    checked.says("note: ", &["HEAD / answered 204; the bank's clock agrees with ours"]);
}

#[test]
fn each_kind_of_distrust_has_words_and_a_hint_of_its_own() {
    let now = SystemTime::now();
    let bank = Stranger::new(&["localhost"], now - DAY..now + 90 * DAY).bank();
    let checked = Checked::bank(&bank);
    checked.fails(&["certificate is not trusted", "BadSignature", "of the same name"]);
    checked.says("note: ", &["certificate 1 of 2: CN=localhost, issued by "]);

    let stranger = Stranger::new(&["somewhere.else"], now - DAY..now + 90 * DAY);
    let checked = Checked::of(&stranger.trusted(&stranger.bank()));
    checked.fails(&["is for another name", "somewhere.else", "Give in `url` a host name"]);
    checked.says("note: ", &["certificate 1 of 2: CN=somewhere.else", ", for somewhere.else, "]);

    let stranger = Stranger::new(&["localhost"], now - 2 * DAY..now - DAY);
    let checked = Checked::of(&stranger.trusted(&stranger.bank()));
    checked.fails(&["has expired", "Tell the bank"]);
    checked.says("warning: ", &["certificate 1 of 2: CN=localhost", ", expired on "]);

    let stranger = Stranger::new(&["localhost"], now + DAY..now + 2 * DAY);
    let checked = Checked::of(&stranger.trusted(&stranger.bank()));
    checked.fails(&["is not valid yet", "Check this machine's clock"]);

    let checked = Checked::bank(&distrustful(&[&rustls::version::TLS12]));
    checked.fails(&[
        "refused our QWAC with the TLS alert DecryptError",
        "an authority of the issuer's name with another key",
    ]);
    let checked = Checked::bank(&distrustful(&[&rustls::version::TLS13]));
    checked.fails(&[
        "refused our QWAC with the TLS alert DecryptError",
        "an authority of the issuer's name with another key",
    ]);
    checked.says("note: ", &["TLS 1.3, ", "handshake in "]);
}

#[test]
fn a_bank_without_a_protocol_that_we_speak() {
    let mut tls = std::sync::Arc::unwrap_or_clone(tls(
        kit().path("bank.pem"),
        kit().path("bank.key"),
        &kit().path("ca.pem"),
        rustls::ALL_VERSIONS,
    ));
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let manner = Manner { tls: tls.into(), ..Manner::good() };
    let checked = Checked::bank(&FakeBank::with(manner, |_| Act::Answer(ok("{}"))));
    checked.fails(&["no TLS version, cipher suite or protocol in common", "HTTP/1.1"]);
    if !present(&["openssl"]) {
        return;
    }
    let bank = Keyboard::start(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    Checked::of(&config(bank.address, "", "")).fails(&["no TLS version, cipher suite or protocol in common"]);
}

#[test]
fn every_bank_is_tried_within_its_own_deadlines_and_told_in_order() {
    let (silent, good) = (TcpListener::bind("127.0.0.1:0").expect("a port"), FakeBank::good());
    let yaml = config(good.address, "", "timeouts: { handshake: 400ms }\n");
    // The same bank three times more: silent twice, and nobody there.
    let (before, rest) = yaml.split_once("  bank:\n").expect("an upstream");
    let (bank, after) = rest.split_once("routes:\n").expect("routes");
    let at =
        |address: std::net::SocketAddr| bank.replace(&good.address.port().to_string(), &address.port().to_string());
    let silent = at(silent.local_addr().expect("bound"));
    let nobody = at(free_port());
    let yaml = format!("{before}  bank:\n{bank}  a:\n{silent}  b:\n{silent}  z:\n{nobody}routes:\n{after}");
    let began = Instant::now();
    let checked = Checked::of(&yaml);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!((checked.code, checked.levels("error: ")), (Some(1), 3), "{}", checked.text);
    let errors: Vec<_> = checked.text.lines().filter(|line| line.starts_with("error: ")).collect();
    for (error, key, reason) in [
        (
            errors[0],
            ": upstreams.a: ",
            "handshake with the upstream took longer than 400ms. Check that `url` names a TLS port",
        ),
        (errors[1], ": upstreams.b: ", "took longer than 400ms"),
        (errors[2], ": upstreams.z: ", "Connection refused"),
    ] {
        assert!(error.contains(key) && error.contains(reason), "{error}");
    }
    checked.says("note: ", &["HEAD / answered 200"]);
}

#[test]
fn the_way_leads_through_the_company_proxy() {
    let (bank, egress) = (FakeBank::good(), Egress::saying(ESTABLISHED));
    let checked = Checked::of(&config(bank.address, &egress.via(), ""));
    checked.is_ok();
    checked.says("note: ", &[&format!("connected to the proxy of `via` at {} in ", egress.address), "tunnel included"]);
    let egress = Egress::saying("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let checked = Checked::of(&config(bank.address, &egress.via(), ""));
    checked.fails(&["opened no tunnel to the upstream and answered 403", "allow CONNECT"]);
}

/// A bank that accepts and says nothing: whoever waits knows for what, and how long.
#[test]
fn who_is_connected_to_and_for_how_long_is_said_beforehand() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("bound");
    let file = folder("silent").join("sealproxy.yaml");
    let check = |more: &str, json: bool| {
        std::fs::write(&file, config(address, "", more)).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealproxy"));
        command.args(["check", "--connect", "--config"]).arg(&file).args(json.then_some("--json"));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let mut child = Running(check("", false).spawn().expect("it starts"));
    let first = &read_until(&mut BufReader::new(child.0.stderr.take().expect("piped")), "")[0];
    assert_eq!(
        *first,
        format!("connecting to bank, https://localhost:{}: takes 75s at most, by `timeouts`", address.port())
    );
    assert!(child.0.try_wait().expect("its state").is_none(), "it waits");
    let quick = "timeouts: { handshake: 100ms }\n";
    let output = check(quick, true).output().expect("it starts");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()), (Some(1), String::new()));
}
