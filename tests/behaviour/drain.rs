//! Starting, being ready, and stopping without cutting anyone.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sealproxy::app::Ended;
use serde_json::Value;

use crate::callers::one_answer;
use crate::support::{Act, Answer, FakeBank, Rig, config, gate, ok, send, until};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

/// For what comes soon, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// A whole one, by its id.
fn payment(host: SocketAddr, id: &str) -> String {
    format!(
        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: {id}\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n{{}}"
    )
}

/// Waits until the only caller's connection is seen to have ended.
fn has_left(rig: &Rig) {
    until("it has left", PATIENCE, || rig.metrics().contains("sealproxy_client_connections 0"));
}

fn readiness(rig: &Rig) -> u16 {
    rig.page("/readyz").status
}

#[test]
fn requests_in_flight_finish_and_nobody_new_is_let_in() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_millis(800), ok("{}")));
    let rig = Rig::before(&bank);
    assert_eq!(readiness(&rig), 200);
    let address = rig.address();
    let mut idle = TcpStream::connect(address).expect("connected");
    let mut half = TcpStream::connect(address).expect("connected");
    half.write_all(b"GET / HTTP/1.1\r\nHo").expect("written");
    let in_flight = std::thread::spawn(move || {
        send(address, format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
    });
    until("the bank has it", PATIENCE, || bank.received().len() == 1);
    rig.signal();
    until("it leaves", PATIENCE, || readiness(&rig) == 503);
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    for stream in [&mut idle, &mut half] {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("closed");
        assert!(rest.is_empty());
    }
    let answer: Answer = in_flight.join().expect("no panic");
    assert_eq!((answer.status, &*answer.body), (200, "{}"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(rig.ended(), Ended::Drained);
}

/// A caller's kept-alive connection.
struct Caller {
    reader: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Caller {
    fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { reader: BufReader::new(stream), address })
    }

    /// Pays on this connection; what came back, and whether the connection stays.
    fn pay(&mut self) -> std::io::Result<(Answer, bool)> {
        let address = self.address;
        write!(
            self.reader.get_mut(),
            "POST {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n{{}}"
        )?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.reader.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let answer = Answer::parse(head.as_bytes());
        let mut body = vec![0; answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)];
        self.reader.read_exact(&mut body)?;
        let stays = answer.header("connection") != Some("close");
        Ok((answer, stays))
    }

    fn ends(mut self) -> bool {
        matches!(self.reader.read(&mut [0; 1]), Ok(0))
    }
}

#[test]
fn while_it_lingers_everybody_is_served_and_told_to_leave() {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "", "timeouts: { linger: 1500ms }\n"));
    let mut idle = Caller::connect(rig.address()).expect("connected");
    assert!(idle.pay().expect("answered").1, "stays");
    let mut fresh = Caller::connect(rig.address()).expect("connected");
    let began = Instant::now();
    rig.terminate();
    until("it leaves", PATIENCE, || readiness(&rig) == 503);
    let new = Caller::connect(rig.address()).expect("still accepted");
    for mut caller in [new, idle] {
        let (answer, stays) = caller.pay().expect("answered");
        assert_eq!((answer.status, stays), (200, false));
        assert!(caller.ends());
    }
    std::thread::sleep(Duration::from_millis(1500).saturating_sub(began.elapsed()) + Duration::from_millis(200));
    assert!(Caller::connect(rig.address()).is_err(), "nobody listens any more");
    // This one has been let in and owes us its request still.
    let (answer, stays) = fresh.pay().expect("answered");
    assert_eq!((answer.status, stays), (200, false));
    assert_eq!(rig.ended(), Ended::Drained);
    assert!((1.5..3.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
}

#[test]
fn a_second_signal_ends_the_linger_and_no_request() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_millis(600), ok("{}")));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { linger: 1m }\n"));
    let mut caller = Caller::connect(rig.address()).expect("connected");
    let paying = std::thread::spawn(move || caller.pay());
    until("the bank has it", PATIENCE, || bank.received().len() == 1);
    let began = Instant::now();
    rig.terminate();
    until("it leaves", PATIENCE, || readiness(&rig) == 503);
    rig.signal();
    assert_eq!(rig.ended(), Ended::Drained);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(paying.join().expect("no panic").expect("answered").0.status, 200);
}

/// Callers pay without a pause, half of them on a new connection each time.
#[test]
fn no_request_fails_while_it_leaves_under_load() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_millis(20), ok("{}")));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { linger: 1m }\n"));
    let address = rig.address();
    let leaving = AtomicBool::new(false);
    let (paid, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let call = |keeps: bool| {
        let mut kept = None;
        // No connection begins in the moment in which the socket closes: its fate would be the kernel's.
        while !leaving.load(Ordering::Relaxed) {
            let Ok(mut caller) = kept.take().map_or_else(|| Caller::connect(address), Ok) else { return };
            match caller.pay() {
                Ok((answer, stays)) if answer.status == 200 => {
                    paid.fetch_add(1, Ordering::Relaxed);
                    kept = (stays && keeps).then_some(caller);
                }
                other => failed.lock().expect("no panic").push(format!("{other:?}")),
            }
        }
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        (0..16).for_each(|number| drop(scope.spawn(move || call(number % 2 == 0))));
        std::thread::sleep(Duration::from_millis(500));
        rig.terminate();
        std::thread::sleep(Duration::from_millis(900));
        leaving.store(true, Ordering::Relaxed);
    });
    // Nobody comes any more whom it could wait for.
    rig.signal();
    assert_eq!(rig.ended(), Ended::Drained);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{failed:?}");
    assert!(paid.into_inner() > 100);
}

#[test]
fn an_http2_connection_is_told_to_leave_and_finishes() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_millis(400), ok("{}")));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { linger: 2s }\n"));
    let address = rig.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        let builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let (mut sender, connection) =
            builder.handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("a preface");
        let connection = tokio::spawn(connection);
        let uri = format!("http://{address}{ACCOUNTS}");
        let request = http::Request::get(&uri).body(http_body_util::Empty::<&[u8]>::new()).expect("a request");
        let answering = sender.send_request(request);
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.terminate();
        assert_eq!(answering.await.expect("answered").status(), 200);
        let ended = tokio::time::timeout(Duration::from_secs(1), connection).await;
        assert!(ended.expect("closed while the proxy lingers").expect("no panic").is_ok());
        // One that comes now is served, and then told to leave.
        let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        let builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let (mut sender, connection) =
            builder.handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("a preface");
        let connection = tokio::spawn(connection);
        let request = http::Request::get(&uri).body(http_body_util::Empty::<&[u8]>::new()).expect("a request");
        assert_eq!(sender.send_request(request).await.expect("answered").status(), 200);
        let ended = tokio::time::timeout(Duration::from_secs(1), connection).await;
        assert!(ended.expect("closed while the proxy lingers").expect("no panic").is_ok());
    });
    assert_eq!(rig.ended(), Ended::Drained);
}

#[test]
fn a_drain_ends_at_its_deadline_and_tells_whoever_still_waits() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_secs(5), ok("{}")));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { drain: 300ms }\n"));
    let address = rig.address();
    let payment = std::thread::spawn(move || {
        let head =
            format!("POST {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n");
        send(address, format!("{head}{{}}").as_bytes())
    });
    let body = std::thread::spawn(move || {
        // Still waits for its body: nothing of it can have left.
        let head =
            format!("POST {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n");
        send(address, head.as_bytes())
    });
    until("one is with the bank, and both under way", Duration::from_secs(10), || {
        bank.received().len() == 1 && rig.metrics().contains("sealproxy_in_flight 2")
    });
    let began = Instant::now();
    rig.signal();
    let log = rig.log.clone();
    assert_eq!(rig.ended(), Ended::TimedOut);
    assert!(began.elapsed() < Duration::from_secs(2));
    let payment = payment.join().expect("no panic");
    assert_eq!((payment.status, &*payment.problem(), &*payment.outcome()), (502, "stopped", "unknown"));
    assert_eq!(payment.header("retry-after"), None);
    let body = body.join().expect("no panic");
    assert_eq!((body.status, &*body.problem(), &*body.outcome()), (502, "stopped", "not_sent"));
    let lines = log.wait(2);
    assert!(lines.iter().all(|line| line["problem"] == "stopped" && line["caller_gone"] == false), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line["outcome"] == "unknown").count(), 1, "{lines:?}");
    assert!(lines.iter().all(|line| line["status"] == 502), "what the callers were told: {lines:?}");
}

/// Its line says what its caller was told, and beside it what the bank said after all.
#[test]
fn an_answer_that_comes_after_the_stop_is_in_the_log_beside_what_the_caller_was_told() {
    let (told, until_told) = gate();
    let bank = FakeBank::doing(move |_| {
        until_told();
        Act::Answer(ok("{}"))
    });
    let rig = Rig::start(&config(bank.address, "", "timeouts: { drain: 10s }\n"));
    let address = rig.address();
    let mut caller = TcpStream::connect(address).expect("connected");
    caller.set_read_timeout(Some(PATIENCE)).expect("a socket");
    caller.write_all(payment(address, "waits").as_bytes()).expect("written");
    until("it is with the bank", PATIENCE, || bank.received().len() == 1);
    let log = rig.log.clone();
    // The first ends the linger, and the second the drain.
    rig.signal();
    rig.signal();
    let payment = one_answer(&mut caller);
    drop(told);
    assert_eq!(rig.ended(), Ended::Hurried);
    assert_eq!((payment.status, &*payment.problem(), &*payment.outcome()), (502, "stopped", "unknown"));
    let line = log.wait(1).pop().expect("a line");
    let said = (&line["status"], &line["problem"], &line["outcome"], &line["caller_gone"]);
    assert_eq!(said, (&502.into(), &"stopped".into(), &"unknown".into(), &false.into()), "{line}");
    assert!(line["cause"].as_str().is_some_and(|cause| cause.contains("the bank answered 200")), "{line}");
    assert_eq!(log.wait(1).len(), 1);
}

/// Nobody was told anything, and nothing was stopped: what the bank answered is what the log knows.
#[test]
fn an_answer_that_comes_after_the_stop_to_a_caller_who_had_left_is_the_bank_s() {
    let (answer, until_the_stop) = gate();
    let bank = FakeBank::doing(move |request| match request.header("x-request-id") {
        Some("left") => {
            until_the_stop();
            Act::Answer(ok("{}"))
        }
        _ => Act::Wait(PATIENCE, ok("{}")),
    });
    let rig = Rig::start(&config(bank.address, "", "timeouts: { drain: 2s }\n"));
    let address = rig.address();
    let mut left = TcpStream::connect(address).expect("connected");
    left.write_all(payment(address, "left").as_bytes()).expect("written");
    until("it is with the bank", PATIENCE, || bank.received().len() == 1);
    drop(left);
    has_left(&rig);
    let stays = std::thread::spawn(move || send(address, payment(address, "stays").as_bytes()));
    until("the other is with the bank", PATIENCE, || bank.received().len() == 2);
    let log = rig.log.clone();
    // The first ends the linger, and the second the drain.
    rig.signal();
    rig.signal();
    assert_eq!(stays.join().expect("no panic").problem(), "stopped");
    answer.send(()).expect("the bank waits");
    assert_eq!(rig.ended(), Ended::Hurried);
    let lines = log.wait(2);
    let line = lines.iter().find(|line| line["request_id"] == "left").expect("its line");
    let said = (&line["status"], &line["problem"], &line["outcome"], &line["caller_gone"]);
    assert_eq!(said, (&200.into(), &Value::Null, &"answered".into(), &true.into()), "{line}");
}

/// An answer that is read on for the log alone, and does not end before the process does.
#[test]
fn an_answer_that_is_cut_by_the_stop_is_told_from_a_whole_one() {
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{\"a\":".to_vec();
    let bank = FakeBank::doing(move |_| Act::AnswerAndLeave(PATIENCE, half.clone()));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { drain: 1s }\n"));
    let address = rig.address();
    let mut left = TcpStream::connect(address).expect("connected");
    left.write_all(payment(address, "left").as_bytes()).expect("written");
    assert!(left.read(&mut [0; 64]).expect("the answer has begun") > 0);
    drop(left);
    has_left(&rig);
    let log = rig.log.clone();
    rig.signal();
    rig.signal();
    assert_eq!(rig.ended(), Ended::Hurried);
    let line = log.wait(1).pop().expect("a line");
    let said = (&line["status"], &line["problem"], &line["outcome"], &line["response_bytes"], &line["caller_gone"]);
    assert_eq!(said, (&200.into(), &"stopped".into(), &"answered".into(), &5.into(), &true.into()), "{line}");
}

/// What is read to its end before it is told is no answer yet: neither to who is told something else meanwhile, nor to
/// who leaves.
#[test]
fn an_answer_that_is_read_for_a_caller_of_http_1_0_is_not_logged_as_told() {
    let half = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec();
    let bank = FakeBank::doing(move |_| Act::AnswerAndLeave(PATIENCE, half.clone()));
    let begun = "sealproxy_upstream_response_seconds_count{upstream=\"bank\"} ";
    for (method, leaves) in [("GET", false), ("POST", false), ("GET", true), ("POST", true)] {
        let rig = Rig::start(&config(bank.address, "", "timeouts: { drain: 1s }\n"));
        let address = rig.address();
        let mut caller = TcpStream::connect(address).expect("connected");
        let body = if method == "POST" { "Content-Type: a/b\r\nContent-Length: 2\r\n\r\n{}" } else { "\r\n" };
        write!(caller, "{method} {ACCOUNTS} HTTP/1.0\r\nHost: {address}\r\n{body}").expect("written");
        until("its answer has begun", PATIENCE, || rig.metrics().contains(&format!("{begun}1")));
        let log = rig.log.clone();
        if leaves {
            drop(caller);
            has_left(&rig);
            if method == "GET" {
                // Given up before the stop.
                log.wait(1);
            }
        }
        rig.signal();
        rig.signal();
        assert_eq!(rig.ended(), if leaves && method == "GET" { Ended::Drained } else { Ended::Hurried }, "{method}");
        let line = log.wait(1).pop().expect("a line");
        let said = (&line["status"], &line["outcome"], &line["caller_gone"], line["problem"].as_str());
        let expected = match (leaves, method) {
            (false, _) => (&502.into(), &"unknown".into(), &false.into(), Some("stopped")),
            (true, "GET") => (&200.into(), &"answered".into(), &true.into(), None),
            (true, _) => (&200.into(), &"answered".into(), &true.into(), Some("stopped")),
        };
        assert_eq!(said, expected, "{method} {leaves}: {line}");
    }
}

/// Once anybody was told that the proxy has stopped, nothing of anybody is sent any more.
#[test]
fn what_is_whole_after_the_stop_is_not_sent() {
    let bank = FakeBank::doing(|request| match request.header("x-request-id") {
        Some("waits") => Act::Wait(Duration::from_secs(5), ok("{}")),
        _ => Act::Answer(ok("{}")),
    });
    let rig = Rig::start(&config(bank.address, "", "timeouts: { drain: 300ms }\n"));
    let address = rig.address();
    let head = |id: &str| {
        format!(
            "POST {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nX-Request-Id: {id}\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n"
        )
    };
    // Connections to the bank that stand: a handshake would take longer than the process has.
    for _ in 0..2 {
        std::thread::scope(|scope| {
            let both = [0, 1].map(|_| scope.spawn(|| rig.get(ACCOUNTS).status));
            both.into_iter().for_each(|one| assert_eq!(one.join().expect("no panic"), 200));
        });
    }
    let warmed = bank.received().len();
    let waits = head("waits");
    let waits = std::thread::spawn(move || send(address, format!("{waits}{{}}").as_bytes()));
    let mut begun = TcpStream::connect(address).expect("connected");
    begun.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    begun.write_all(&head("begun").as_bytes()[..60]).expect("written");
    until("one is with the bank", Duration::from_secs(10), || bank.received().len() == warmed + 1);
    let (log, rest) = (rig.log.clone(), format!("{}{{}}", &head("begun")[60..]));
    rig.signal();
    assert_eq!(waits.join().expect("no panic").problem(), "stopped");
    // Whether it is still heard or the process has ended: it is not sent, and no line says so.
    let mut answer = Vec::new();
    if begun.write_all(rest.as_bytes()).is_ok() {
        let _ = begun.read_to_end(&mut answer);
    }
    assert_eq!(rig.ended(), Ended::TimedOut);
    assert_eq!(bank.received().len(), warmed + 1, "{}\n{}", String::from_utf8_lossy(&answer), log.text());
    if !answer.is_empty() {
        let answer = Answer::parse(&answer);
        assert_eq!((&*answer.problem(), &*answer.outcome()), ("stopped", "not_sent"), "{answer:?}");
    }
}

/// Nobody was told anything.
#[test]
fn a_payment_whose_caller_left_before_the_drain_ended_has_no_status() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_secs(5), ok("{}")));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { drain: 300ms }\n"));
    let mut stream = TcpStream::connect(rig.address()).expect("connected");
    let head = format!("POST {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\nContent-Type: a/b\r\n", rig.address());
    stream.write_all(format!("{head}Content-Length: 2\r\n\r\n{{}}").as_bytes()).expect("written");
    until("it is with the bank", Duration::from_secs(10), || bank.received().len() == 1);
    drop(stream);
    until("it has left", Duration::from_secs(10), || rig.metrics().contains("sealproxy_client_connections 0"));
    rig.signal();
    let log = rig.log.clone();
    assert_eq!(rig.ended(), Ended::TimedOut);
    let line = log.wait(1).pop().expect("a line");
    let said = (&line["status"], &line["problem"], &line["outcome"], &line["caller_gone"]);
    assert_eq!(said, (&Value::Null, &"stopped".into(), &"unknown".into(), &true.into()), "{line}");
}

#[test]
fn the_admin_pages() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    rig.get(ACCOUNTS);
    let page = |request: &str| {
        send(rig.admin, format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
    };
    assert_eq!(page("GET /livez").status, 200);
    let nothing = page("GET /");
    assert_eq!(nothing.status, 404);
    assert!(nothing.body.contains("/livez /readyz /metrics"), "{}", nothing.body);
    assert_eq!(page("POST /metrics").status, 405);
    rig.log.wait(1);
    let metrics = page("GET /metrics").body;
    for expected in [
        "sealproxy_requests_total{outcome=\"answered\",route=\"/sandbox/becm/stet-psd2-api/\",status=\"2xx\"} 1",
        "sealproxy_seal_seconds_count{route=\"/sandbox/becm/stet-psd2-api/\"} 1",
        "sealproxy_upstream_connect_seconds_count{upstream=\"bank\"} 1",
        "sealproxy_upstream_handshake_seconds_count{upstream=\"bank\"} 1",
        "sealproxy_upstream_response_seconds_count{upstream=\"bank\"} 1",
        "sealproxy_in_flight 0",
        "sealproxy_certificate_expiry_timestamp_seconds{identity=\"main\",use=\"qsealc\"}",
        "sealproxy_build_info{",
        "sealproxy_log_dropped_lines_total 0",
    ] {
        assert!(metrics.contains(expected), "{expected}\n{metrics}");
    }
}
