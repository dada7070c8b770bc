//! What a process owes to those who run it: bounded metrics and memory, errors whose detail stays in the log, ports of
//! its own, callers that are slow in every other way.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::cli::{Started, standing_still, start};
use crate::framing::statuses;
use crate::outside::free_port;
use crate::support::{Act, FakeBank, Rig, config, ok, page, send};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";

/// A probe that is not answered restarts the process.
#[test]
fn who_says_nothing_keeps_no_probe_from_the_admin_pages() {
    let rig = Rig::before(&FakeBank::good());
    let silent: Vec<_> = (0..70).map(|_| TcpStream::connect(rig.admin).expect("it is taken in")).collect();
    for _ in 0..3 {
        let began = Instant::now();
        let page = rig.page("/livez");
        assert_eq!((page.status, &*page.body), (200, "alive\n"));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    let mut oldest = &silent[0];
    oldest.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    assert!(matches!(oldest.read(&mut [0]), Ok(0)), "there are 64 places");
}

/// More than have a place come in within one turn of the event loop, and the probe is the oldest.
#[test]
fn a_crowd_of_connections_keeps_no_probe_from_the_admin_pages() {
    let proxy = start(&config(free_port(), "", ""), &[]);
    for _ in 0..3 {
        meet_a_crowd(&proxy);
    }
}

fn meet_a_crowd(proxy: &Started) {
    let connect = || TcpStream::connect(proxy.admin).expect("in the queue");
    let (mut probe, crowd) = standing_still(&proxy.child, || {
        let mut probe = connect();
        probe.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("written");
        (probe, (0..100).map(|_| connect()).collect::<Vec<_>>())
    });
    let mut answer = String::new();
    probe.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    probe.read_to_string(&mut answer).expect("it is not reset");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(crowd);
    // Whoever is heard now came last: nobody is left in the queue.
    assert_eq!(page(proxy.admin, "/livez").status, 200);
}

/// T-err: a caller learns what to do, and not which machine, file or library said what.
#[test]
fn causes_are_told_to_the_log_and_not_to_callers() {
    let nobody = free_port();
    let rig = Rig::start(&config(nobody, "", ""));
    let answer = rig.get(ACCOUNTS);
    assert_eq!(answer.problem(), "upstream-refused");
    let cause = rig.log.wait(1)[0]["cause"].as_str().expect("a cause").to_owned();
    assert!(cause.contains("os error") && cause.contains(&nobody.to_string()), "{cause}");
    let told = format!("{}{}", answer.head, answer.body);
    // With its colon: five digits alone may be a part of the request's id.
    let port = format!(":{}", nobody.port());
    for inside in [&*cause, "os error", &port, "localhost", "127.0.0.1", ".rs", "/tmp"] {
        assert!(!told.contains(inside), "{inside} in {told}");
    }
    let broken = TcpStream::connect(rig.address()).and_then(|mut stream| {
        write!(
            stream,
            "POST {PAYMENTS} HTTP/1.1\r\nHost: {}\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\nzz",
            rig.address()
        )?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut raw = String::new();
        stream.read_to_string(&mut raw).map(|_| raw)
    });
    let broken = broken.expect("an answer");
    assert!(!broken.contains("hyper") && !broken.contains("chunk size"), "{broken}");
}

/// T-self: pages of the proxy itself are elsewhere.
#[test]
fn no_page_of_the_proxy_itself_shadows_a_path_of_the_bank() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    for page in ["/livez", "/readyz", "/metrics", "/status", "/health"] {
        assert_eq!(rig.get(page).problem(), "no-route", "{page}");
    }
    assert_eq!(rig.get("/sandbox/becm/stet-psd2-api/metrics").status, 200);
    assert!(bank.only().request_line().starts_with("GET /sandbox/becm/stet-psd2-api/metrics "));
}

/// T-rot5.
#[test]
fn hang_ups_during_a_drain_kill_nothing() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_millis(700), ok("{}")));
    let mut proxy = start(&config(bank.address, "", ""), &[]);
    let address = proxy.address;
    let payment = std::thread::spawn(move || {
        let head =
            format!("POST {PAYMENTS} HTTP/1.1\r\nHost: {address}\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n");
        send(address, format!("{head}{{}}").as_bytes())
    });
    while bank.received().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    proxy.child.signal("HUP");
    proxy.child.signal("TERM");
    (0..10).for_each(|_| proxy.child.signal("HUP"));
    assert_eq!(payment.join().expect("no panic").status, 200);
    assert_eq!(proxy.child.0.wait().expect("it ends").code(), Some(0));
}

/// T-s4: also where the body was too much.
#[test]
fn the_body_that_was_too_large_is_no_request() {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "", "limits: { body: 16 }\n"));
    let smuggled = format!("GET {ACCOUNTS}?smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let post = format!("POST {PAYMENTS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\n");
    let length = smuggled.len();
    for request in [
        format!("{post}Content-Length: {length}\r\n\r\n{smuggled}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{smuggled}\r\n0\r\n\r\n"),
    ] {
        assert_eq!(statuses(&rig, &request), [413]);
    }
    assert_eq!(bank.connections(), 0);
}

/// T-slow: bodies that pause, and bodies that trickle.
#[test]
fn slow_bodies_are_refused_in_time_and_nothing_of_them_is_sent() {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "", "timeouts: { body: 300ms, body_total: 800ms }\n"));
    for (pause, bytes) in [(Duration::from_secs(5), 1), (Duration::from_millis(100), 100)] {
        let mut stream = TcpStream::connect(rig.address()).expect("connected");
        let mut writer = stream.try_clone().expect("a socket");
        let host = rig.address();
        write!(writer, "POST {PAYMENTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\nContent-Length: 1000\r\n\r\n")
            .expect("written");
        std::thread::spawn(move || {
            for _ in 0..bytes {
                if writer.write_all(b"a").is_err() {
                    return;
                }
                std::thread::sleep(pause);
            }
        });
        let began = Instant::now();
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 408");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    assert!(rig.log.wait(2).iter().all(|line| line["problem"] == "body-timeout" && line["outcome"] == "not_sent"));
    assert_eq!(bank.connections(), 0);
}

/// T-slow: whoever does not read its answer holds a connection for as long as one exchange may take.
#[test]
fn a_caller_that_does_not_read_its_answer_is_let_go() {
    let large = ok(&"a".repeat(16 << 20));
    let bank = FakeBank::doing(move |_| Act::Answer(large.clone()));
    let rig = Rig::start(&config(bank.address, "", "timeouts: { exchange: 500ms }\n"));
    let mut stream = TcpStream::connect(rig.address()).expect("connected");
    write!(stream, "GET {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\n\r\n", rig.address()).expect("written");
    let deadline = Instant::now() + Duration::from_secs(30);
    rig.log.wait(1);
    while !rig.metrics().contains("sealproxy_client_connections 0") {
        assert!(Instant::now() < deadline, "still held");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(rig.metrics().contains("sealproxy_in_flight 0"));
}
