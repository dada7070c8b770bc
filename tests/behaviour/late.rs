//! A bank that asks for the client certificate only after the handshake, which rustls cannot answer: the errors name
//! it, nobody waits for a deadline, and nobody is told that nothing was sent.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::server::WebPkiClientVerifier;
use rustls::{ConnectionTrafficSecrets, ServerConfig, ServerConnection, StreamOwned};
use sealproxy::identity::pem;

use crate::outside::{free_port, present, wait_for};
use crate::support::{Rig, Running, config, kit};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";

/// OpenSSL's TLS server with its keyboard: `R` asks the client to renegotiate with its certificate.
pub(crate) struct Keyboard {
    process: Running,
    pub(crate) address: SocketAddr,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Keyboard {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let address = free_port();
        let mut process = Command::new("openssl")
            .args(["s_server", "-accept", &address.port().to_string(), "-cert"])
            .arg(kit().path("bank.pem"))
            .arg("-key")
            .arg(kit().path("bank.key"))
            .arg("-CAfile")
            .arg(kit().path("ca.pem"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl starts");
        let screen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (shown, mut stdout) = (Arc::clone(&screen), process.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut chunk) {
                shown.lock().expect("no panic").extend_from_slice(&chunk[..read]);
            }
        });
        wait_for(address);
        Self { process: Running(process), address, screen }
    }

    pub(crate) fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("no panic")).into_owned()
    }

    /// Waits until this was shown `count` times.
    pub(crate) fn wait(&self, text: &str, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.screen().matches(text).count() < count {
            assert!(Instant::now() < deadline, "no {count} {text:?} in {}", self.screen());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let stdin = self.process.0.stdin.as_mut().expect("piped");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("openssl runs");
    }
}

#[test]
fn a_bank_that_renegotiates_for_the_certificate_is_named_at_once() {
    if !present(&["openssl"]) {
        return;
    }
    let mut bank = Keyboard::start(&["-tls1_2"]);
    let rig = Rig::start(&config(bank.address, "", "timeouts: { response: 8s }\n"));
    let began = Instant::now();
    let answer = std::thread::scope(|scope| {
        let caller = scope.spawn(|| rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}"));
        bank.wait("POST /sandbox", 1);
        bank.write(b"R\n");
        caller.join().expect("no panic")
    });
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (502, "upstream-renegotiation", "unknown"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let line = rig.log.wait(1).pop().expect("a line");
    assert!(line["cause"].as_str().is_some_and(|cause| cause.contains("renegotiate")), "{line}");
}

/// A bank on TLS 1.3 that asks for no certificate, reads a request, says this and no more. No TLS library says such
/// things on demand, and so the record is made here: `inner` is its content with the type behind it.
fn says_after_the_request(listener: &TcpListener, asks: Asks, inner: Vec<u8>) -> std::io::Result<()> {
    let (socket, _) = listener.accept()?;
    let chain = pem::read_chain(&kit().path("bank.pem")).expect("a chain");
    let key = pem::read_key(&kit().path("bank.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has suites for it");
    let config = match asks {
        Asks::Nothing => config.with_no_client_auth(),
        Asks::Certificate { .. } => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add_parsable_certificates(pem::read_chain(&kit().path("ca.pem")).expect("roots"));
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            config.with_client_cert_verifier(verifier.expect("roots"))
        }
    };
    let mut config = config.with_single_cert(chain, key).expect("a pair");
    if let Asks::Certificate { tickets } = asks {
        config.send_tls13_tickets = tickets;
    }
    config.enable_secret_extraction = true;
    let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).expect("a session"), socket);
    let mut request = [0; 4096];
    assert!(tls.read(&mut request)? > 0);
    let StreamOwned { conn, mut sock } = tls;
    let secrets = conn.dangerous_extract_secrets().expect("enabled");
    let (sequence, ConnectionTrafficSecrets::Aes256Gcm { key, iv }) = secrets.tx else { panic!("another suite") };
    sock.write_all(&record(inner, key.as_ref(), iv.as_ref(), sequence))?;
    let _ = sock.read_to_end(&mut Vec::new());
    Ok(())
}

/// What a bank wants in the handshake.
#[derive(Clone, Copy)]
enum Asks {
    Nothing,
    /// Our certificate, content with which it sends session tickets.
    Certificate {
        tickets: usize,
    },
}

/// One encrypted record (RFC 8446 section 5.2).
fn record(mut inner: Vec<u8>, key: &[u8], iv: &[u8], sequence: u64) -> Vec<u8> {
    let length = u16::try_from(inner.len() + 16).expect("short").to_be_bytes();
    let header = [23, 3, 3, length[0], length[1]];
    let mut nonce: [u8; 12] = iv.try_into().expect("96 bits");
    nonce[4..].iter_mut().zip(sequence.to_be_bytes()).for_each(|(nonce, sequence)| *nonce ^= sequence);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("256 bits"));
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut inner).expect("sealed");
    [&header[..], &inner].concat()
}

/// What a caller learns whose bank says this after the request.
fn answered(asks: Asks, inner: Vec<u8>) -> (Rig, (u16, String, String)) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let rig = Rig::start(&config(listener.local_addr().expect("bound"), "", ""));
    let bank = std::thread::spawn(move || says_after_the_request(&listener, asks, inner));
    let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
    assert!(bank.join().expect("no panic").is_ok());
    (rig, (answer.status, answer.problem(), answer.outcome()))
}

#[test]
fn a_bank_that_asks_after_the_handshake_is_named_and_counted() {
    // CertificateRequest (RFC 8446 section 4.3.2): a context of one byte, and ecdsa_secp256r1_sha256.
    let extensions = [0, 13, 0, 4, 0, 2, 4, 3];
    let (rig, said) = answered(Asks::Nothing, [&[13, 0, 0, 12, 1, 1, 0, 8][..], &extensions, &[22]].concat());
    assert_eq!(said, (502, "upstream-post-handshake-authentication".into(), "unknown".into()));
    assert!(rig.metrics().contains(WITHOUT_QWAC), "{}", rig.metrics());
}

#[test]
fn a_refusal_by_a_bank_that_has_not_asked_for_our_certificate_speaks_of_the_request() {
    for alert in [ACCESS_DENIED, CERTIFICATE_UNKNOWN] {
        // Fatal, from whoever has read the request and may have acted on it.
        let (_, said) = answered(Asks::Nothing, vec![2, alert, 21]);
        assert_eq!(said, (502, "upstream-closed".into(), "unknown".into()), "alert {alert}");
    }
}

/// Session tickets come from a bank that is content with the handshake: what it refuses after them is the request.
#[test]
fn a_refusal_after_session_tickets_is_not_about_our_certificate() {
    for (tickets, alert, said_of_it) in [
        (2, ACCESS_DENIED, ("upstream-closed", "unknown")),
        (2, CERTIFICATE_UNKNOWN, ("upstream-closed", "unknown")),
        // Access control may have read the request, and whoever judges certificates has not.
        (0, ACCESS_DENIED, ("qwac-refused", "unknown")),
        (0, CERTIFICATE_UNKNOWN, ("qwac-refused", "not_sent")),
    ] {
        let (_, said) = answered(Asks::Certificate { tickets }, vec![2, alert, 21]);
        assert_eq!(said, (502, said_of_it.0.into(), said_of_it.1.into()), "{tickets} tickets, alert {alert}");
    }
}

const CERTIFICATE_UNKNOWN: u8 = 46;
const ACCESS_DENIED: u8 = 49;

const WITHOUT_QWAC: &str = "sealproxy_upstream_handshakes_without_qwac_total{upstream=\"bank\"} 1";

/// Takes `count` requests, a connection each, on this bank that asks for no certificate.
fn without_qwac(arguments: &[&str], count: usize) -> (Rig, String) {
    let mut bank = Keyboard::start(arguments);
    let rig = Rig::start(&config(bank.address, "    idle: 100ms\n", ""));
    for number in 1..=count {
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| rig.get(ACCOUNTS));
            bank.wait("GET /sandbox", number);
            bank.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}\n");
            assert_eq!(caller.join().expect("no panic").status, 200);
        });
    }
    (rig, bank.screen())
}

#[test]
fn a_handshake_without_the_qwac_is_counted_and_a_resumed_one_is_not() {
    if !present(&["openssl"]) {
        return;
    }
    for protocol in ["-tls1_2", "-tls1_3"] {
        let (rig, screen) = without_qwac(&[protocol], 2);
        assert!(screen.contains("Reused session-id"), "{screen}");
        assert!(rig.metrics().contains(WITHOUT_QWAC), "{protocol}: {}", rig.metrics());
    }
    let (rig, _) = without_qwac(&["-tls1_3", "-Verify", "2"], 1);
    assert!(!rig.metrics().contains(WITHOUT_QWAC), "{}", rig.metrics());
}
