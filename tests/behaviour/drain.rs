//! Starting, being ready, and stopping without cutting anyone.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sealproxy::app::Ended;

use crate::support::{Act, Answer, FakeBank, Rig, config, ok, send};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

fn readiness(rig: &Rig) -> u16 {
    send(rig.admin, b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").status
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
    std::thread::sleep(Duration::from_millis(300));
    rig.signal();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(readiness(&rig), 503);
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
    std::thread::sleep(Duration::from_millis(200));
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
}

#[test]
fn the_admin_pages() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    rig.get(ACCOUNTS);
    let page = |request: &str| {
        send(rig.admin, format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
    };
    assert_eq!(page("GET /livez").status, 200);
    assert_eq!(page("GET /").status, 404);
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
