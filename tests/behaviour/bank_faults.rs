//! A bank that does not do its part: every fault has a problem of its own, and says what is known of the request.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant, SystemTime};

use sealproxy::sandbox::authority::{Authority, KeyKind};
use serde_json::Value;

use crate::outside::free_port;
use crate::support::{Act, FakeBank, Manner, Rig, config, folder, gate, kit, meets, ok, tls, until};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// One that waits for the connection which the bank has, rather than make another.
fn with_one_connection(bank: &FakeBank) -> Rig {
    Rig::start(&config(bank.address, "    connections: 1\n", ""))
}

/// Expects this answer to a POST, and the same words in log and metrics.
#[track_caller]
fn fails(rig: &Rig, status: u16, problem: &str, outcome: &str) {
    let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
    let said = (answer.status, &*answer.problem(), &*answer.outcome());
    assert_eq!(said, (status, problem, outcome), "{answer:?}\n{}", rig.log.text());
    assert!(outcome == "not_sent" || answer.header("retry-after").is_none(), "{answer:?}");
    let line = rig.log.wait(1).pop().expect("a line");
    assert_eq!((line["problem"].as_str(), line["outcome"].as_str()), (Some(problem), Some(outcome)), "{line}");
    let class = status / 100;
    let counted = format!("outcome=\"{outcome}\",route=\"/sandbox/becm/stet-psd2-api/\",status=\"{class}xx\"}} 1");
    assert!(rig.metrics().contains(&counted), "{counted}");
}

/// A pair for a bank, made by an authority that the tests' configuration does not trust unless it is the kit's own.
pub(crate) struct Stranger {
    folder: PathBuf,
}

impl Stranger {
    pub(crate) fn new(names: &[&str], validity: std::ops::Range<SystemTime>) -> Self {
        let folder = folder("stranger");
        let authority = Authority::new(SystemTime::now()).expect("an authority").with_validity(validity);
        let issued = authority.server(names, KeyKind::P256).expect("a certificate");
        std::fs::write(folder.join("ca.pem"), authority.certificate_pem()).expect("a file");
        std::fs::write(folder.join("bank.pem"), issued.chain_pem).expect("a file");
        std::fs::write(folder.join("bank.key"), issued.key_pem).expect("a file");
        Self { folder }
    }

    pub(crate) fn bank(&self) -> FakeBank {
        let pair = (self.folder.join("bank.pem"), self.folder.join("bank.key"));
        let tls = tls(pair.0, pair.1, &kit().path("ca.pem"), rustls::ALL_VERSIONS);
        FakeBank::with(Manner { tls, ..Manner::good() }, |_| Act::Answer(ok("{}")))
    }

    /// A configuration that trusts this authority.
    pub(crate) fn trusted(&self, bank: &FakeBank) -> String {
        let yaml = config(bank.address, "", "");
        let trust = format!("trust: {}", kit().path("ca.pem").display());
        yaml.replace(&trust, &format!("trust: {}", self.folder.join("ca.pem").display()))
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}

#[test]
fn a_bank_that_refuses_the_connection() {
    let port = free_port();
    fails(&Rig::start(&config(port, "", "")), 502, "upstream-refused", "not_sent");
}

#[test]
fn a_name_that_does_not_resolve() {
    let yaml = config(SocketAddr::from(([127, 0, 0, 1], 443)), "", "")
        .replace("https://localhost:443", "https://bank.invalid");
    fails(&Rig::start(&yaml), 502, "upstream-unresolvable", "not_sent");
}

#[test]
fn a_name_that_resolves_into_our_own_network() {
    // This machine's own name is the one that leads inside everywhere, where it leads anywhere.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim().to_ascii_lowercase();
    if (name.as_str(), 443).to_socket_addrs().is_err() {
        eprintln!("SKIPPED: the name of this machine, {name}, does not resolve");
        return;
    }
    let yaml = config(SocketAddr::from(([127, 0, 0, 1], 443)), "", "")
        .replace("private: true", "private: false")
        .replace("https://localhost:443", &format!("https://{name}"));
    fails(&Rig::start(&yaml), 502, "upstream-private-address", "not_sent");
}

#[test]
fn a_certificate_of_an_authority_that_we_do_not_trust() {
    let bank = Stranger::new(&["localhost"], now() - DAY..now() + DAY).bank();
    fails(&Rig::before(&bank), 502, "upstream-untrusted", "not_sent");
    assert_eq!(bank.received().len(), 0);
}

#[test]
fn a_certificate_for_another_name() {
    let stranger = Stranger::new(&["somewhere.else"], now() - DAY..now() + DAY);
    let bank = stranger.bank();
    fails(&Rig::start(&stranger.trusted(&bank)), 502, "upstream-wrong-name", "not_sent");
}

#[test]
fn a_certificate_that_has_expired() {
    let stranger = Stranger::new(&["localhost"], now() - 2 * DAY..now() - DAY);
    let bank = stranger.bank();
    fails(&Rig::start(&stranger.trusted(&bank)), 502, "upstream-expired", "not_sent");
}

#[test]
fn a_certificate_that_is_not_valid_yet() {
    let stranger = Stranger::new(&["localhost"], now() + DAY..now() + 2 * DAY);
    let bank = stranger.bank();
    fails(&Rig::start(&stranger.trusted(&bank)), 502, "upstream-not-yet-valid", "not_sent");
}

/// A bank whose roots do not include our QWAC's.
pub(crate) fn distrustful(versions: &[&'static rustls::SupportedProtocolVersion]) -> FakeBank {
    static OTHER: OnceLock<Stranger> = OnceLock::new();
    let other = OTHER.get_or_init(|| Stranger::new(&["localhost"], now() - DAY..now() + DAY));
    let tls = tls(kit().path("bank.pem"), kit().path("bank.key"), &other.folder.join("ca.pem"), versions);
    FakeBank::with(Manner { tls, ..Manner::good() }, |_| Act::Answer(ok("{}")))
}

#[test]
fn a_qwac_that_is_refused_under_tls_1_2() {
    let bank = distrustful(&[&rustls::version::TLS12]);
    fails(&Rig::before(&bank), 502, "qwac-refused", "not_sent");
    assert_eq!(bank.received().len(), 0);
}

#[test]
fn a_qwac_that_is_refused_under_tls_1_3_after_the_request_was_written() {
    let bank = distrustful(&[&rustls::version::TLS13]);
    fails(&Rig::before(&bank), 502, "qwac-refused", "not_sent");
    assert_eq!(bank.received().len(), 0);
}

#[test]
fn a_bank_that_speaks_no_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // T-s9: an answer in plain text before the handshake is believed by nobody.
            let _ = std::io::Write::write_all(&mut stream.expect("accepted"), &ok("{}"));
        }
    });
    fails(&Rig::start(&config(address, "", "")), 502, "upstream-handshake-failed", "not_sent");
}

#[test]
fn a_bank_that_accepts_and_never_shakes_hands() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let yaml = config(listener.local_addr().expect("bound"), "", "timeouts: { handshake: 200ms }\n");
    fails(&Rig::start(&yaml), 504, "upstream-handshake-timeout", "not_sent");
}

#[test]
fn a_connection_closed_before_the_head() {
    let bank = FakeBank::doing(|_| Act::AnswerAndClose(Vec::new()));
    fails(&Rig::before(&bank), 502, "upstream-closed", "unknown");
    assert_eq!(bank.received().len(), 1, "a request that may have been seen is never sent again");
}

#[test]
fn a_connection_reset_before_the_head() {
    let bank = FakeBank::doing(|_| Act::AnswerAndReset(Vec::new()));
    fails(&Rig::before(&bank), 502, "upstream-closed", "unknown");
    assert_eq!(bank.received().len(), 1);
}

#[test]
fn a_connection_closed_within_the_head() {
    let bank = FakeBank::doing(|_| Act::AnswerAndClose(b"HTTP/1.1 201 Crea".to_vec()));
    fails(&Rig::before(&bank), 502, "upstream-closed-in-head", "unknown");
}

#[test]
fn a_head_that_is_no_http() {
    let bank = FakeBank::doing(|_| Act::Answer(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()));
    fails(&Rig::before(&bank), 502, "upstream-malformed", "unknown");
}

#[test]
fn a_head_has_a_limit() {
    let with =
        |long: usize| [b"HTTP/1.1 200 OK\r\nX-Long: ", &*vec![b'x'; long], b"\r\nContent-Length: 0\r\n\r\n"].concat();
    let bank = FakeBank::doing(move |_| Act::Answer(with(60 * 1024)));
    let answer = Rig::before(&bank).request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
    assert_eq!((answer.status, answer.header("x-long").map(str::len)), (200, Some(60 * 1024)));
    let bank = FakeBank::doing(move |_| Act::Answer(with(200 * 1024)));
    fails(&Rig::before(&bank), 502, "upstream-malformed", "unknown");
}

#[test]
fn a_bank_that_switches_protocols_unasked() {
    let bank = FakeBank::doing(|_| {
        Act::Answer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_vec())
    });
    fails(&Rig::before(&bank), 502, "upstream-malformed", "unknown");
}

#[test]
fn interim_answers_are_not_the_answer() {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let bank = FakeBank::doing(|_| Act::Answer([&interim[..], &ok("{}")].concat()));
    let rig = with_one_connection(&bank);
    for _ in 0..2 {
        assert_eq!(rig.get(ACCOUNTS).body, "{}");
    }
    assert_eq!(bank.connections(), 1);
}

#[test]
fn answers_without_a_body_keep_the_connection() {
    let bank = FakeBank::doing(|request| {
        let answer: &[u8] = match request.request_line().split(' ').next() {
            Some("HEAD") => b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            Some("DELETE") => b"HTTP/1.1 204 No Content\r\n\r\n",
            _ => b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 77\r\n\r\n",
        };
        Act::Answer(answer.to_vec())
    });
    let rig = with_one_connection(&bank);
    for _ in 0..2 {
        let head = rig.request("HEAD", ACCOUNTS, "", "");
        assert_eq!((head.status, head.header("content-length"), &*head.body), (200, Some("1234"), ""));
        assert_eq!(rig.request("DELETE", ACCOUNTS, "", "").status, 204);
        assert_eq!(rig.get(ACCOUNTS).header("etag"), Some("\"a\""));
    }
    assert_eq!(bank.connections(), 1);
}

#[test]
fn no_answer_in_time() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_secs(3), ok("{}")));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { response: 300ms }\n"));
    fails(&rig, 504, "upstream-timeout", "unknown");
}

#[test]
fn a_body_that_is_cut_is_visibly_cut_for_the_caller() {
    for act in [Act::AnswerAndClose, Act::AnswerAndReset] {
        let bank = FakeBank::doing(move |_| act(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".to_vec()));
        let rig = Rig::before(&bank);
        let answer = rig.get(ACCOUNTS);
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("100")));
        assert!(answer.body.len() < 100, "{answer:?}");
        let line = rig.log.wait(1).pop().expect("a line");
        assert_eq!(
            (line["problem"].as_str(), line["outcome"].as_str()),
            (Some("upstream-cut"), Some("answered")),
            "{line}"
        );
        let cause = line["cause"].as_str().expect("the log tells more");
        assert!(["end of file before", "reset"].iter().any(|end| cause.contains(end)), "{cause}");
    }
}

#[test]
fn the_head_of_a_body_that_is_cut_at_once_reaches_the_caller() {
    // An answer whose end was known before its head had left was an empty close, after which HTTP libraries send again.
    let bank =
        FakeBank::doing(|_| Act::AnswerAndVanish(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n".to_vec()));
    let rig = Rig::before(&bank);
    for _ in 0..20 {
        let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
        assert_eq!((answer.status, answer.header("content-length")), (201, Some("100")), "{answer:?}");
        assert_eq!(answer.body, "");
    }
    assert!(rig.log.wait(20).iter().all(|line| line["problem"] == "upstream-cut" && line["outcome"] == "answered"));
}

/// In one segment with the alert, some of it more than is read at a time.
#[test]
fn an_answer_before_an_alert_is_not_lost() {
    for length in [2, 5000, 15_000, 40_000] {
        let body = "x".repeat(length);
        let (whole, cut) = (ok(&body), ok(&body)[..ok(&body).len() - 1].to_vec());
        let bank = FakeBank::doing(move |request| match request.request_line().starts_with("GET") {
            true => Act::AnswerAndAlert(cut.clone()),
            false => Act::AnswerAndAlert(whole.clone()),
        });
        let rig = Rig::before(&bank);
        let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
        assert_eq!((answer.status, answer.body == body), (200, true), "{length} {}", answer.head);
        let answer = rig.get(ACCOUNTS);
        assert_eq!((answer.status, answer.body.len()), (200, length - 1), "visibly less than its length");
        for (line, problem) in rig.log.wait(2).iter().zip([Value::Null, "upstream-cut".into()]) {
            assert_eq!((&line["outcome"], &line["problem"]), (&"answered".into(), &problem), "{line}");
        }
        assert_eq!(bank.received().len(), 2);
    }
}

#[test]
fn an_exchange_that_takes_too_long_as_a_whole_is_answered() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_secs(10), ok("{}")));
    // Long enough for a connection and a seal on a busy machine.
    let rig = || Rig::start(&config(bank.address, "", "timeouts: { exchange: 1500ms }\n"));
    let (sends, waits) = (rig(), rig());
    let slow =
        format!("POST {PAYMENTS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n{{");
    std::thread::scope(|scope| {
        scope.spawn(|| fails(&sends, 504, "exchange-timeout", "unknown"));
        let answer = waits.send(&slow);
        assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (504, "exchange-timeout", "not_sent"));
    });
    for rig in [&sends, &waits] {
        assert!(rig.log.wait(1).iter().all(|line| line["caller_gone"] == false));
    }
}

#[test]
fn a_length_beside_chunks_does_not_cut_the_answer() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let bank = FakeBank::doing(move |_| Act::Answer(answer.to_vec()));
    let answer = Rig::before(&bank).get(ACCOUNTS);
    assert_eq!((answer.status, answer.header("content-length")), (200, None));
    assert!(answer.body.contains("hello"), "{answer:?}");
}

#[test]
fn a_body_that_pauses_for_too_long_is_cut() {
    let bank = FakeBank::doing(|_| Act::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".to_vec()));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { response_frame: 200ms }\n"));
    assert!(rig.get(ACCOUNTS).body.len() < 100);
    assert_eq!(rig.log.wait(1)[0]["problem"], "upstream-cut");
    assert!(rig.metrics().contains("sealproxy_upstream_failures_total{cause=\"upstream-cut\",upstream=\"bank\"} 1"));
}

/// Reads no more of a request than its head, answers and hangs up: what is still on its way meets a closed socket.
fn answers_and_closes(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    // Or the answer may wait in the kernel behind what has not been taken yet, session tickets among it, and the reset
    // finds it there.
    let mut config = (*Manner::good().tls).clone();
    config.send_tls13_tickets = 0;
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).expect("a session");
            socket.set_nodelay(true).expect("a socket");
            let mut tls = rustls::StreamOwned::new(session, socket);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                match tls.read(&mut byte) {
                    Ok(1) => head.push(byte[0]),
                    _ => break,
                }
            }
            let _ = tls.write_all(answer.as_bytes()).and_then(|()| tls.flush());
        }
    });
    address
}

/// RFC 9112 section 9.5: what the bank said before it hung up is there to be read, though the rest cannot be written.
#[test]
fn an_answer_that_comes_before_the_whole_of_a_payment_is_not_lost() {
    let bank = answers_and_closes("HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large");
    let body = "x".repeat(1_000_000);
    let answered_of_30 = || {
        let rig = Rig::start(&config(bank, "", ""));
        let mut answered = 0;
        for _ in 0..30 {
            let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", &body);
            match answer.status {
                413 => assert_eq!((&*answer.body, answer.outcome()), ("too large", String::new()), "{answer:?}"),
                // The reset that follows may overtake it: nothing of it ever came.
                _ => assert_eq!((answer.status, &*answer.outcome()), (502, "unknown"), "{answer:?}"),
            }
            answered += usize::from(answer.status == 413);
        }
        let lines = rig.log.wait(30);
        let told = lines.iter().filter(|line| line["outcome"] == "answered" && line["attempts"] == 1).count();
        assert_eq!(told, answered);
        answered
    };
    // More of them are overtaken while the machine is busy.
    meets(answered_of_30, |answered| *answered >= 22);
}

/// And where it said nothing, nothing is known.
#[test]
fn a_payment_that_cannot_be_written_to_its_end_is_unknown() {
    let rig = Rig::start(&config(answers_and_closes(""), "", ""));
    let body = "x".repeat(1_000_000);
    let began = Instant::now();
    let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", &body);
    assert_eq!((answer.status, &*answer.outcome()), (502, "unknown"), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "at once: {:?}", began.elapsed());
}

/// RFC 9110 section 8.6: callers refuse an answer whose length they cannot read, though the payment was executed.
#[test]
fn a_length_that_stands_there_twice_reaches_the_caller_once() {
    for (fields, kept) in [
        ("Content-Length: 2\r\nContent-Length: 2\r\n", Some("2")),
        ("Content-Length: 2, 2\r\n", Some("2")),
        ("Content-Length: 2,2 ,  2\r\n", Some("2")),
        ("Content-Length: 2\r\n", Some("2")),
    ] {
        let bank = FakeBank::doing(move |request| {
            let body = if request.request_line().starts_with("HEAD") { "" } else { "{}" };
            Act::Answer(format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}").into_bytes())
        });
        let rig = Rig::start(&config(bank.address, "", ""));
        for (method, body) in [("HEAD", ""), ("POST", "{}"), ("GET", ""), ("HEAD", "")] {
            let answer = rig.request(method, PAYMENTS, "Content-Type: application/json\r\n", body);
            assert_eq!((answer.status, answer.header("content-length")), (200, kept), "{method} {fields}: {answer:?}");
            let lines = answer.head.lines().filter(|line| line.to_ascii_lowercase().starts_with("content-length:"));
            assert_eq!(lines.count(), 1, "{answer:?}");
        }
    }
    for fields in ["Content-Length: 2\r\nContent-Length: 3\r\n", "Content-Length: abc\r\n", "Content-Length: +2\r\n"] {
        let bank = FakeBank::doing(move |_| Act::Answer(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").into_bytes()));
        let rig = Rig::start(&config(bank.address, "", ""));
        let answer = rig.request("HEAD", PAYMENTS, "", "");
        assert_eq!((answer.status, answer.header("content-length")), (200, None), "{fields}: {answer:?}");
    }
}

/// RFC 9110 section 8.6: it has none, and what comes all the same is nobody's answer.
#[test]
fn an_answer_without_a_body_that_announces_one_ends_its_connection() {
    for field in ["Content-Length: 2", "Transfer-Encoding: chunked"] {
        let bank =
            FakeBank::doing(move |_| Act::Answer(format!("HTTP/1.1 204 No Content\r\n{field}\r\n\r\n").into_bytes()));
        let rig = Rig::start(&config(bank.address, "", ""));
        for _ in 0..2 {
            assert_eq!(rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}").status, 204);
        }
        assert_eq!(bank.connections(), 2, "{field}");
    }
}

/// A bank that stops reading in the middle of a payment, and goes on long after its caller was told.
#[test]
fn a_payment_that_was_given_up_is_not_written_on_and_keeps_no_place() {
    const LARGE: usize = 16 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (go_on, wait) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut first = Some((wait, tell));
        for socket in listener.incoming() {
            let session = rustls::ServerConnection::new(Manner::good().tls).expect("a session");
            let mut tls = rustls::StreamOwned::new(session, socket.expect("accepted"));
            let mut read = tls.read(&mut [0; 4096]).unwrap_or_default();
            match first.take() {
                Some((wait, tell)) => drop(std::thread::spawn(move || {
                    let _ = wait.recv_timeout(Duration::from_secs(20));
                    let mut piece = vec![0; 1 << 20];
                    while let Ok(more @ 1..) = tls.read(&mut piece) {
                        read += more;
                    }
                    let _ = tell.send(read);
                })),
                None => drop(tls.write_all(&ok("{}"))),
            }
        }
    });
    let top = "limits: { body: 32MiB, buffered: 128MiB }\ntimeouts: { response: 1s }\n";
    let rig = Rig::start(&config(address, "    connections: 1\n", top));
    let pay = |body: &str| rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", body);
    let given_up = pay(&"x".repeat(LARGE));
    assert_eq!((given_up.status, &*given_up.problem(), &*given_up.outcome()), (504, "upstream-timeout", "unknown"));
    assert_eq!(pay("{}").status, 200, "it keeps the only place");
    go_on.send(()).expect("the bank waits");
    let read = told.recv_timeout(Duration::from_secs(20)).expect("its connection ends");
    assert!(read < LARGE, "{read} bytes: all of it");
}

/// The whole of an exchange ends though no piece of the answer comes that could tell it, and whoever waited did not
/// leave.
#[test]
fn an_answer_that_pauses_ends_with_its_exchange_and_its_caller_is_not_blamed() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
    let bank = FakeBank::doing(|request| {
        let begun = if request.request_line().contains("begun") { &b"a part"[..] } else { b"" };
        Act::Answer([head, begun].concat())
    });
    let rig = Rig::start(&config(bank.address, "", "timeouts: { exchange: 2s }\n"));
    let requests = [
        format!("GET {ACCOUNTS} HTTP/1.1"),
        format!("GET {ACCOUNTS}?begun HTTP/1.1"),
        format!("GET {ACCOUNTS} HTTP/1.0"),
        format!("POST {PAYMENTS} HTTP/1.1\r\nContent-Type: a/b\r\nContent-Length: 0"),
    ];
    let is_cut = |request: &str| {
        let began = Instant::now();
        let answer = rig.send(&format!("{request}\r\nHost: {}\r\n\r\n", rig.address()));
        // Where it is found out by the connection's own clock, it is two seconds later.
        assert!(began.elapsed() < Duration::from_millis(3500), "{request}: {:?}", began.elapsed());
        assert!(answer.status == 200 && answer.body.len() < 100, "{request}: {answer:?}");
    };
    // All at a time, because each takes as long as an exchange may.
    std::thread::scope(|scope| {
        requests.iter().for_each(|request| drop(scope.spawn(move || is_cut(request))));
    });
    for line in rig.log.wait(4) {
        assert_eq!(
            (&line["problem"], &line["outcome"], &line["caller_gone"]),
            (&"exchange-timeout".into(), &"answered".into(), &false.into()),
            "{line}"
        );
    }
}

/// The answer to a payment is read on after its caller was cut, and what the bank does then is not what cut it.
#[test]
fn what_comes_after_the_end_of_an_exchange_is_not_what_ended_it() {
    for begun in ["", "a part"] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{begun}").into_bytes();
        let bank = FakeBank::doing(move |request| match request.request_line().contains("leaves") {
            true => Act::AnswerAndLeave(Duration::from_millis(2500), answer.clone()),
            false => Act::Answer(answer.clone()),
        });
        let top = "timeouts: { exchange: 1500ms, response_frame: 2500ms }\n";
        let rig = Rig::start(&config(bank.address, "", top));
        let pay = |what: &str| {
            let target = format!("{PAYMENTS}?{what}");
            assert_eq!(rig.request("POST", &target, "Content-Type: a/b\r\n", "{}").status, 200);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| pay("leaves"));
            pay("pauses");
        });
        for line in rig.log.wait(2) {
            let said = (&line["problem"], &line["caller_gone"]);
            assert_eq!(said, (&"exchange-timeout".into(), &false.into()), "{line}");
        }
    }
}

#[test]
fn an_idle_connection_that_the_bank_has_closed_costs_no_request() {
    let bank = FakeBank::doing(|request| match request.request_line().contains("later") {
        false => Act::AnswerAndVanish(ok("{}")),
        true => Act::AnswerAndLeave(Duration::from_millis(50), ok("{}")),
    });
    let rig = Rig::before(&bank);
    for _ in 0..20 {
        assert_eq!(rig.request("POST", PAYMENTS, "Content-Type: a/b\r\n", "{}").status, 200);
    }
    for _ in 0..20 {
        let later = format!("{PAYMENTS}?later");
        assert_eq!(rig.request("POST", &later, "Content-Type: a/b\r\n", "{}").status, 200);
        // What is sent before the end has come, nobody can know to be lost.
        until("the end has come", Duration::from_secs(10), || {
            rig.metrics().contains("sealproxy_upstream_connections{upstream=\"bank\"} 0")
        });
    }
    assert_eq!((bank.received().len(), bank.connections()), (40, 40));
}

#[test]
fn at_a_limit_load_is_shed_by_its_name_and_the_rest_is_kept() {
    for (more, top, problem, limit) in [
        ("    in_flight: 1\n", "", "upstream-busy", "the 1 of its `in_flight`"),
        ("    connections: 1\n", "timeouts: { connect: 500ms }\n", "upstream-busy", "all of the 1 `connections`"),
        ("", "limits: { in_flight: 1 }\n", "overloaded", "the 1 of `limits.in_flight`"),
    ] {
        let (told, until_told) = gate();
        let bank = FakeBank::doing(move |_| {
            until_told();
            Act::Answer(ok("{}"))
        });
        let rig = Rig::start(&config(bank.address, more, top));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| rig.get(ACCOUNTS));
            until("the first is with the bank", Duration::from_secs(10), || bank.received().len() == 1);
            let second = rig.get(ACCOUNTS);
            assert_eq!((second.status, &*second.problem(), second.header("retry-after")), (503, problem, Some("1")));
            assert!(second.body.contains(limit), "{}", second.body);
            drop(told);
            assert_eq!(first.join().expect("no panic").status, 200);
        });
    }
}
