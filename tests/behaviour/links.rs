//! Connections to the bank: forgotten by what stands between, and tried again.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::relay::{self, Forgets};
use crate::sealing::verify;
use crate::support::{Act, FakeBank, Manner, Rig, config, file_config, meets, ok, until};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const SOON: Duration = Duration::from_secs(10);
const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";

fn pay(rig: &Rig) -> crate::support::Answer {
    rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}")
}

/// T-idle: the first payment after a pause, on a connection that a balancer or a firewall has forgotten meanwhile.
#[test]
fn a_connection_that_was_closed_or_reset_while_idle_costs_no_payment() {
    // No handshake pauses for so long.
    const IDLE: Duration = Duration::from_secs(1);
    for forgets in [Forgets::Closing, Forgets::Resetting] {
        let bank = FakeBank::good();
        let rig = Rig::start(&config(relay::start(bank.address, IDLE, forgets), "", ""));
        assert_eq!(pay(&rig).status, 200, "{forgets:?} {}", rig.log.text());
        for _ in 0..2 {
            let none = "sealproxy_upstream_connections{upstream=\"bank\"} 0";
            until("it is forgotten", SOON, || rig.metrics().contains(none));
            assert_eq!(pay(&rig).status, 200, "{forgets:?} {}", rig.log.text());
        }
        assert_eq!((bank.received().len(), bank.connections()), (3, 3), "{forgets:?}");
    }
}

/// A caller that asks.
fn caller(rig: &Rig) -> TcpStream {
    let mut caller = TcpStream::connect(rig.address()).expect("connected");
    write!(caller, "GET {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\n\r\n", rig.address()).expect("written");
    caller
}

/// Asks, and leaves as soon as the bank is dialled.
fn leave_while_it_is_dialled(rig: &Rig, bank: &FakeBank) {
    let _hasty = caller(rig);
    until("it is dialled", SOON, || bank.connections() == 1);
}

/// A caller who is less patient than the bank is quick would leave none to anybody, himself included.
#[test]
fn a_connection_outlives_whoever_left_before_it_was_there() {
    let slow = Manner { pause: Duration::from_millis(400), ..Manner::good() };
    let bank = FakeBank::with(slow, |_| Act::Answer(ok("{}")));
    // Not on a token, which nothing is asked that nobody waits for. The one that is dialled is all that there may be.
    let rig = Rig::start(&file_config(bank.address, "    connections: 1\n", ""));
    leave_while_it_is_dialled(&rig, &bank);
    let line = rig.log.wait(1).pop().expect("a line");
    assert_eq!((&line["caller_gone"], &line["outcome"]), (&true.into(), &"not_sent".into()), "{line}");
    let open = "sealproxy_upstream_connections{upstream=\"bank\"} 1";
    until("it is there", SOON, || rig.metrics().contains(open));
    assert_eq!(pay(&rig).status, 200);
    assert_eq!(rig.log.wait(2)[1]["reused"], true, "the bank may close it at any moment, as one that was used");
    assert_eq!((bank.received().len(), bank.connections()), (1, 1));
}

/// Where it is all that there may be, it is for whoever waits: he has it sooner than one of his own.
#[test]
fn a_connection_that_is_dialled_for_nobody_is_for_whoever_waits() {
    let tried = || {
        let slow = Manner { pause: Duration::from_millis(500), ..Manner::good() };
        let bank = FakeBank::with(slow, |_| Act::Answer(ok("{}")));
        let rig = Rig::start(&file_config(bank.address, "    connections: 1\n", ""));
        std::thread::scope(|scope| {
            let hasty = caller(&rig);
            until("it is dialled", SOON, || bank.connections() == 1);
            let waits = scope.spawn(|| pay(&rig).status);
            until("another waits", SOON, || rig.metrics().contains("sealproxy_in_flight 2"));
            drop(hasty);
            assert_eq!(waits.join().expect("no panic"), 200);
        });
        (bank.received().len(), bank.connections())
    };
    meets(tried, |counts| *counts == (1, 1));
}

/// Nor does a bank that is silent keep all places with connections that nobody waits for.
#[test]
fn a_dial_that_nobody_waits_for_gives_way_where_the_bank_is_silent() {
    let silent = Manner { pause: Duration::from_secs(20), ..Manner::good() };
    let bank = FakeBank::with(silent, |_| Act::Answer(ok("{}")));
    let top = "timeouts: { handshake: 15s }\n";
    let rig = Rig::start(&file_config(bank.address, "    connections: 2\n", top));
    let both = [caller(&rig), caller(&rig)];
    until("both are dialled", SOON, || bank.connections() == 2);
    drop(both);
    rig.log.wait(2);
    let _next = [caller(&rig), caller(&rig)];
    until("two more are dialled", Duration::from_secs(4), || bank.connections() == 4);
}

/// Where nobody waits for it, its failure is counted all the same.
#[test]
fn a_connection_that_comes_to_nothing_is_counted_after_whoever_left() {
    let slow = Manner { pause: Duration::from_secs(5), ..Manner::good() };
    let bank = FakeBank::with(slow, |_| Act::Answer(ok("{}")));
    let rig = Rig::start(&file_config(bank.address, "", "timeouts: { handshake: 400ms }\n"));
    leave_while_it_is_dialled(&rig, &bank);
    rig.log.wait(1);
    let counted = "sealproxy_upstream_failures_total{cause=\"upstream-handshake-timeout\",upstream=\"bank\"} 1";
    until("it is counted", SOON, || rig.metrics().contains(counted));
}

/// T-idle: what is dropped silently cannot be seen. Below the firewall's time nothing is lost; above it the caller
/// learns that nothing is known, and nothing is sent twice.
#[test]
fn an_idle_time_below_that_of_a_silent_firewall_costs_no_payment() {
    const FIREWALL: Duration = Duration::from_millis(600);
    for (idle, second) in [("200ms", (200, String::new())), ("50s", (504, "unknown".to_owned()))] {
        let bank = FakeBank::good();
        let link = relay::start(bank.address, FIREWALL, Forgets::Silently);
        let rig = Rig::start(&config(link, &format!("    idle: {idle}\n"), "timeouts: { response: 500ms }\n"));
        assert_eq!(pay(&rig).status, 200);
        std::thread::sleep(2 * FIREWALL);
        let answer = pay(&rig);
        assert_eq!((answer.status, answer.outcome()), second, "idle: {idle}");
        assert_eq!(bank.received().len(), if second.0 == 200 { 2 } else { 1 });
    }
}

/// T-ret: what goes out a second time is sealed a second time.
#[test]
fn a_request_that_is_tried_again_is_sealed_again() {
    // Each connection is gone a moment after its answer: mostly before it is picked, or after, but sometimes just then.
    let count = AtomicU64::new(0);
    let bank = FakeBank::doing(move |_| {
        let moment = count.fetch_add(1, Ordering::Relaxed) * 7919 % 1000;
        Act::AnswerAndLeave(Duration::from_micros(moment), ok("{}"))
    });
    let rig = Rig::before(&bank);
    let (enough, deadline) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(8));
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) && Instant::now() < deadline {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let answer = rig.get(ACCOUNTS);
                    assert!(answer.status == 200 || answer.outcome() == "unknown", "{answer:?}");
                    if rig.log.text().contains("\"attempts\":2") {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let received = bank.received();
    let lines = rig.log.wait(asked.into_inner());
    let attempts: u64 = lines.iter().map(|line| line["attempts"].as_u64().expect("a number")).sum();
    eprintln!("{} requests, {attempts} attempts", lines.len());
    assert!(attempts > lines.len() as u64, "none was tried again in {} requests", lines.len());
    let sealed = format!("sealproxy_seal_seconds_count{{route=\"/sandbox/becm/stet-psd2-api/\"}} {attempts}");
    assert!(rig.metrics().contains(&sealed), "{sealed}");
    for request in &received {
        verify(request).expect("verified");
    }
}

/// A bank that has no room for more and closes each connection without a word, a moment after its answer: what comes
/// back is handed to those who wait, and has ended by then.
#[test]
fn whoever_waits_at_a_bank_that_closes_each_connection_is_served_in_the_end() {
    let bank = FakeBank::doing(|_| Act::AnswerAndLeave(Duration::from_micros(300), ok("{}")));
    let yaml = config(bank.address, "    connections: 2\n", "").replace("threads: 2", "threads: 1");
    let rig = Rig::start(&yaml);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| drop(pay(&rig))));
        }
    });
    let lines = rig.log.wait(160);
    let count = |is_so: &dyn Fn(&serde_json::Value) -> bool| lines.iter().filter(|line| is_so(line)).count();
    assert_eq!(count(&|line| line["outcome"] == "not_sent"), 0, "{lines:?}");
    assert!(count(&|line| line["outcome"] == "answered") > 0, "{lines:?}");
    assert!(count(&|line| line["attempts"].as_u64() > Some(3)) == 0, "{lines:?}");
    assert!(bank.received().len() <= 160, "none twice");
}
