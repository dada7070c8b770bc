//! The bank's clock and ours: what its `Date` makes of the metric and the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::support::{Act, FakeBank, Rig};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

/// An answer with these further header lines.
fn answer(lines: &str) -> Act {
    Act::Answer(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{lines}\r\n").into_bytes())
}

/// `Date`, this many seconds from now.
fn date(offset: i64) -> String {
    let now = SystemTime::now();
    let distance = Duration::from_secs(offset.unsigned_abs());
    let date = if offset < 0 { now - distance } else { now + distance };
    format!("Date: {}\r\n", httpdate::fmt_http_date(date))
}

fn gauge(rig: &Rig) -> Option<f64> {
    let metrics = rig.metrics();
    let line = metrics.lines().find(|line| line.starts_with("sealproxy_upstream_clock_skew_seconds{"))?;
    line.strip_prefix("sealproxy_upstream_clock_skew_seconds{upstream=\"bank\"} ")?.parse().ok()
}

/// The log's lines about clocks.
fn told(rig: &Rig, exchanges: usize) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (told, others): (Vec<_>, Vec<_>) =
            rig.log.wait(exchanges).into_iter().partition(|line| line["event"] == "clock-skew");
        if others.len() == exchanges {
            return told;
        }
        assert!(Instant::now() < deadline, "{others:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Answers are looked at once in a second.
fn a_second_later() {
    std::thread::sleep(Duration::from_millis(1050));
}

#[test]
fn a_bank_whose_clock_is_off_is_measured_and_told_once() {
    for (offset, measured) in [(600, 598.0..601.0), (-600, -601.0..-598.0)] {
        let clock = Arc::new(AtomicI64::new(offset));
        let bank = FakeBank::doing({
            let clock = Arc::clone(&clock);
            move |_| answer(&date(clock.load(Ordering::SeqCst)))
        });
        let rig = Rig::before(&bank);
        assert_eq!(gauge(&rig), None, "nothing is known yet");
        assert_eq!(rig.get(ACCOUNTS).status, 200, "and nothing is refused for it");
        assert!(gauge(&rig).is_some_and(|skew| measured.contains(&skew)), "{:?}", gauge(&rig));
        a_second_later();
        rig.get(ACCOUNTS);
        let lines = told(&rig, 2);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!((lines[0]["upstream"].as_str(), lines[0]["over"].as_bool()), (Some("bank"), Some(false)));
        assert!(lines[0]["skew_seconds"].as_f64().is_some_and(|skew| measured.contains(&skew)), "{lines:?}");
        clock.store(0, Ordering::SeqCst);
        for _ in 0..2 {
            a_second_later();
            rig.get(ACCOUNTS);
        }
        assert!(gauge(&rig).is_some_and(|skew| skew.abs() < 1.0), "{:?}", gauge(&rig));
        clock.store(offset, Ordering::SeqCst);
        a_second_later();
        rig.get(ACCOUNTS);
        assert!(gauge(&rig).is_some_and(|skew| measured.contains(&skew)), "{:?}", gauge(&rig));
        let lines = told(&rig, 5);
        let over: Vec<_> = lines.iter().map(|line| line["over"].as_bool()).collect();
        assert_eq!(over, [Some(false), Some(true)], "not twice in a minute: {lines:?}");
    }
}

#[test]
fn a_date_that_is_doubled_malformed_or_a_cache_s_says_nothing() {
    for lines in [
        format!("{}{}", date(600), date(600)),
        "Date: yesterday\r\n".to_owned(),
        format!("{}Age: 600\r\n", date(-600)),
        String::new(),
    ] {
        let bank = FakeBank::doing({
            let lines = lines.clone();
            move |_| answer(&lines)
        });
        let rig = Rig::before(&bank);
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        assert_eq!((gauge(&rig), told(&rig, 1).len()), (None, 0), "{lines}");
    }
}
