//! The bank's clock beside ours, by the `Date` of its answers (RFC 9110 section 6.6.1): a metric, and a line in the log
//! when they part and when they agree again. Refuses nothing: how much a bank tolerates is not known.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::header::{AGE, DATE, HeaderMap};
use serde::Serialize;

use super::metrics::Metrics;
use crate::log::{Importance, Log, timestamp};

/// What is known of one bank's clock.
pub(super) struct Skew {
    metrics: Arc<Metrics>,
    log: Log,
    born: Instant,
    /// In which second of ours an answer was last looked at, counted from 1; 0: none was.
    looked: AtomicU64,
    alarm: Mutex<Alarm>,
}

impl Skew {
    /// Of an upstream. Its gauge has no value before the first `Date`.
    pub(super) fn new(metrics: Arc<Metrics>, log: Log) -> Self {
        let (looked, alarm) = (AtomicU64::new(0), Mutex::default());
        Self { metrics, log, born: Instant::now(), looked, alarm }
    }

    /// Looks at the answer to a request that began then and took so long: at one answer a second, whichever comes
    /// first, because a clock that stands still has to be noticed as well. The others cost one read of an atomic
    /// number.
    pub(super) fn observe(&self, headers: &HeaderMap, began: Instant, took: Duration) {
        if !self.is_due(began + took) {
            return;
        }
        // A cache's answer has the Date of another day (RFC 9111 section 5.1).
        let Some(date) = date(headers).filter(|_| !headers.contains_key(AGE)) else { return };
        let now = SystemTime::now();
        let offset = Offset::of(date, now, took);
        self.metrics.clock_is_ahead(offset.seconds);
        let mut alarm = self.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        if alarm.changes(&offset, began + took) {
            self.tell(now, offset.seconds, !alarm.raised);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.born).as_secs() + 1;
        self.looked.load(Ordering::Relaxed) != second && self.looked.swap(second, Ordering::Relaxed) != second
    }

    fn tell(&self, now: SystemTime, seconds: f64, over: bool) {
        let detail = match over {
            true => "the bank's clock agrees with ours again",
            false => {
                "the bank's clock and ours differ: banks refuse seals whose Date is off; check this machine's clock"
            }
        };
        let skew_seconds = (seconds * 10.0).round() / 10.0;
        let (time, upstream) = (timestamp(now), self.metrics.name());
        let line = Line { time, event: "clock-skew", upstream, skew_seconds, over, detail };
        self.log.entry(&line, Importance::Usual);
    }
}

/// The moment in an answer's only `Date`; `None` without one, with two, or with one that is none.
pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    let mut dates = headers.get_all(DATE).iter();
    let (date, None) = (dates.next()?, dates.next()) else { return None };
    httpdate::parse_http_date(date.to_str().ok()?).ok()
}

/// How far the bank's clock is ahead of ours.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Offset {
    /// Against the middle of the request's time; negative: behind. 0 within the second that `Date` names.
    seconds: f64,
    /// By how much the true offset may differ, because the bank may have read its clock at either end of that time.
    doubt: f64,
}

impl Offset {
    fn of(date: SystemTime, received: SystemTime, took: Duration) -> Self {
        let middle = received.checked_sub(took / 2).unwrap_or(received);
        let end = date + Duration::from_secs(1);
        let seconds = match (date.duration_since(middle), middle.duration_since(end)) {
            (Ok(ahead), _) => ahead.as_secs_f64(),
            (_, Ok(behind)) if !behind.is_zero() => -behind.as_secs_f64(),
            _ => 0.0,
        };
        Self { seconds, doubt: took.as_secs_f64() / 2.0 }
    }

    fn is_surely_off(&self) -> bool {
        self.seconds.abs() - self.doubt > f64::from(TOLERATED_SKEW)
    }

    fn is_surely_right(&self) -> bool {
        self.seconds.abs() + self.doubt <= f64::from(TOLERATED_SKEW)
    }
}

/// Whether the log says that the clocks differ.
#[derive(Default)]
struct Alarm {
    raised: bool,
    last: Option<Instant>,
}

impl Alarm {
    /// Whether the log is to hear of it: that they differ, at most once in [`QUIET`], or that they do no more.
    fn changes(&mut self, offset: &Offset, now: Instant) -> bool {
        let silent = self.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET);
        if !self.raised && !silent && offset.is_surely_off() {
            *self = Self { raised: true, last: Some(now) };
            return true;
        }
        let over = self.raised && offset.is_surely_right();
        self.raised &= !over;
        over
    }
}

/// In seconds: above what a machine with NTP is off, and below the few minutes that services commonly allow; what these
/// banks allow for is not known.
pub const TOLERATED_SKEW: u8 = 30;

/// Two machines behind one name, of which one is off, must not fill the log.
const QUIET: Duration = Duration::from_secs(60);

/// The log's line.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    event: &'static str,
    upstream: &'a str,
    skew_seconds: f64,
    over: bool,
    detail: &'static str,
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// All in milliseconds.
    fn offset(date: u64, received: u64, took: u64) -> f64 {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        Offset::of(at(date), at(received), Duration::from_millis(took)).seconds
    }

    #[test]
    fn the_second_that_date_names_is_no_offset() {
        assert_eq!(offset(100_000, 100_000, 0), 0.0);
        assert_eq!(offset(100_000, 100_999, 0), 0.0);
        assert_eq!(offset(100_000, 101_000, 0), 0.0);
        assert_eq!(offset(100_000, 101_500, 0), -0.5);
        assert_eq!(offset(100_000, 99_500, 0), 0.5);
        assert_eq!(offset(100_000, 101_400, 1000), 0.0, "the middle counts");
        assert_eq!(offset(700_000, 100_000, 0), 600.0);
        assert_eq!(offset(100_000, 701_000, 0), -600.0);
    }

    #[test]
    fn a_slow_answer_proves_neither_that_clocks_differ_nor_that_they_agree() {
        let offset = |seconds, doubt| Offset { seconds, doubt };
        assert!(offset(31.0, 0.5).is_surely_off() && !offset(31.0, 2.0).is_surely_off());
        assert!(offset(-31.0, 0.5).is_surely_off() && !offset(30.0, 0.0).is_surely_off());
        assert!(offset(-29.0, 1.0).is_surely_right() && !offset(29.0, 2.0).is_surely_right());
    }

    #[test]
    fn clocks_that_flap_are_told_once_a_minute() {
        let (mut alarm, start) = (Alarm::default(), Instant::now());
        let mut told = |seconds: f64, after: u64| {
            let said = alarm.changes(&Offset { seconds, doubt: 0.0 }, start + Duration::from_secs(after));
            (said, alarm.raised)
        };
        assert_eq!(told(10.0, 0), (false, false));
        assert_eq!(told(-600.0, 1), (true, true));
        assert_eq!(told(-600.0, 2), (false, true), "said once");
        assert_eq!(told(0.0, 3), (true, false));
        assert_eq!(told(0.0, 4), (false, false));
        assert_eq!(told(600.0, 5), (false, false), "within the minute");
        assert_eq!(told(0.0, 6), (false, false), "what was not said is not taken back");
        assert_eq!(told(600.0, 61), (true, true));
    }

    #[test]
    fn a_date_that_is_doubled_or_malformed_is_none() {
        let dates = |dates: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.extend(dates.iter().map(|date| (DATE, HeaderValue::from_static(date))));
            date(&headers)
        };
        const EPOCH: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
        assert_eq!(dates(&[EPOCH]), Some(SystemTime::UNIX_EPOCH));
        for malformed in [&[][..], &[EPOCH, EPOCH], &["now"], &[""], &["Thu, 01 Jan 1970 00:00:00 CET"]] {
            assert_eq!(dates(malformed), None, "{malformed:?}");
        }
    }
}
