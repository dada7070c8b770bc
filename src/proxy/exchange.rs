//! One request's record. Whatever becomes of the request, dropping the record emits exactly one access-log line and
//! counts the metrics once.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

use super::metrics::RouteMetrics;
use super::problem::Problem;
use super::redact::Words;
use super::route::Route;
use super::stop::Stop;
use super::unwanted::{Audience, audience, is_unwanted};
use crate::causes::in_words;
use crate::log::{Fields, Importance, Log, name, timestamp};
use crate::upstream::{AnswerError, Outcome};

/// Where records go.
pub(super) struct Recorder {
    pub(super) log: Log,
    /// Of requests that found no route.
    pub(super) unrouted: Arc<RouteMetrics>,
    /// Requests under way.
    pub(super) in_flight: IntGauge,
    /// Whether what ends from now on is cut by the proxy's own end.
    pub(super) stop: Arc<Stop>,
}

/// What is known of one exchange so far.
pub(super) struct Exchange {
    recorder: Arc<Recorder>,
    began: Instant,
    time: SystemTime,
    id: HeaderValue,
    method: Method,
    path: String,
    route: Option<Arc<Route>>,
    status: Option<StatusCode>,
    outcome: Outcome,
    problem: Option<&'static str>,
    cause: Option<String>,
    request_bytes: u64,
    response_bytes: u64,
    acquire: Option<Duration>,
    seal: Option<Duration>,
    response: Option<Duration>,
    reused: Option<bool>,
    attempts: u32,
    caller_gone: bool,
    /// Whether the answer is read on for nobody, or before anybody has a byte of it.
    reads_on: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Exchange {
    /// Begins the record of a request that has just been parsed. In a box: it changes hands a dozen times.
    pub(super) fn begin(recorder: &Arc<Recorder>, head: &Parts, id: HeaderValue, words: &Words) -> Box<Self> {
        recorder.in_flight.inc();
        Box::new(Self {
            recorder: Arc::clone(recorder),
            began: Instant::now(),
            time: SystemTime::now(),
            id,
            method: head.method.clone(),
            path: words.path(head.uri.path()),
            route: None,
            status: None,
            outcome: Outcome::NotSent,
            problem: None,
            cause: None,
            request_bytes: 0,
            response_bytes: 0,
            acquire: None,
            seal: None,
            response: None,
            reused: None,
            attempts: 0,
            caller_gone: false,
            reads_on: false,
            permit: None,
        })
    }

    /// The request's id.
    pub(super) fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// When it did.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Whether the method changes nothing at the bank (RFC 9110 section 9.2.1).
    pub(super) fn is_safe(&self) -> bool {
        self.method.is_safe()
    }

    pub(super) fn routed(&mut self, route: &Arc<Route>) {
        self.route = Some(Arc::clone(route));
    }

    /// Counts as under way from here to the record's end.
    pub(super) fn admitted(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    pub(super) fn collected(&mut self, bytes: u64) {
        self.request_bytes = bytes;
    }

    pub(super) fn acquired(&mut self, took: Duration, reused: bool) {
        self.acquire = Some(took);
        self.reused = Some(reused);
        self.attempts += 1;
    }

    /// How many connections it has had.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(super) fn sealed(&mut self, took: Duration) {
        self.seal = Some(took);
        if let Some(route) = &self.route {
            route.metrics.seal.observe(took.as_secs_f64());
        }
    }

    /// From here on the bank may have the request: until an answer says otherwise, nothing is known.
    pub(super) fn sending(&mut self) {
        self.outcome = Outcome::Unknown;
    }

    /// It is proven that nothing left, and it is about to be tried afresh.
    pub(super) fn unsent(&mut self) {
        self.outcome = Outcome::NotSent;
    }

    pub(super) fn answered(&mut self, status: StatusCode, took: Duration) {
        self.response = Some(took);
        self.caller_gone |= is_unwanted();
        if audience() == Audience::Told {
            return self.stopped(format!("the bank answered {status} when its caller had been told so"));
        }
        self.status = Some(status);
        self.outcome = Outcome::Answered;
    }

    /// The record says what the caller was told at the stop, and beside it what came of the request after all.
    fn stopped(&mut self, later: String) {
        let told = Problem::Stopped(Outcome::Unknown);
        self.status = Some(told.status());
        self.outcome = told.outcome();
        self.problem = Some(told.kind());
        self.cause = Some(later);
    }

    pub(super) fn relayed(&mut self, bytes: u64) {
        self.response_bytes += bytes;
    }

    /// The answer's body ended early: the caller sees it cut, unless it was cut before for another reason.
    pub(super) fn cut(&mut self, error: &AnswerError) {
        if self.problem.is_some() {
            return;
        }
        self.problem = Some(error.kind());
        self.cause = Some(in_words(error));
    }

    /// The answer ends before it is whole, and not for the bank's sake: the caller left, or the proxy stops.
    pub(super) fn caller_gone(&mut self) {
        if self.recorder.stop.has_come() && !self.caller_gone {
            self.lost(&Problem::Stopped(self.outcome));
        } else {
            self.caller_gone = true;
        }
    }

    /// The bank's part is over: whoever takes its answer slowly keeps nobody else waiting.
    pub(super) fn done_with_the_bank(&mut self) {
        self.permit = None;
        if !std::mem::take(&mut self.reads_on) {
            return;
        }
        self.caller_gone |= is_unwanted();
        if audience() == Audience::Told {
            self.stopped("the bank's answer was whole when its caller had been told so".to_owned());
        }
    }

    /// From here to the end of the bank's part the answer is read for the record, or to be told as a whole.
    pub(super) fn reads_on(&mut self) {
        self.reads_on = true;
    }

    /// Nobody misses the rest.
    pub(super) fn given_up(&mut self) {
        self.reads_on = false;
    }

    /// The answer is dropped before its end.
    fn read_no_further(&mut self) {
        self.caller_gone |= is_unwanted();
        if audience() == Audience::Told {
            self.stopped("the bank had begun its answer when its caller had been told so".to_owned());
        } else if self.recorder.stop.has_come() {
            self.problem.get_or_insert(Problem::Stopped(self.outcome).kind());
        }
    }

    /// The caller did not take its answer.
    pub(super) fn stalled(&mut self) {
        // Where the answer is one of ours, what it says is what went wrong.
        self.problem.get_or_insert("caller-stalled");
        self.caller_gone = true;
    }

    /// The answer did not end in the time that the whole exchange has.
    pub(super) fn timed_out(&mut self) {
        self.problem.get_or_insert(Problem::ExchangeTimeout(self.outcome).kind());
    }

    /// The record goes before the caller's answer is made: unless one has begun, or it has left, it is told this.
    fn lost(&mut self, problem: &Problem) {
        self.problem = Some(problem.kind());
        if is_unwanted() {
            self.caller_gone = true;
        } else {
            self.status.get_or_insert(problem.status());
        }
    }

    /// The caller is told so, which takes nothing of the bank's time.
    pub(super) fn failed(&mut self, problem: &Problem, status: StatusCode) {
        (self.permit, self.reads_on) = (None, false);
        self.caller_gone |= is_unwanted() || problem.is_of_a_caller_who_left();
        if audience() == Audience::Told {
            let cause = problem.cause().unwrap_or_else(|| problem.to_string());
            return self.stopped(format!("{}: {cause}", problem.kind()));
        }
        self.status = Some(status);
        self.outcome = problem.outcome();
        self.problem = Some(problem.kind());
        self.cause = problem.cause();
    }

    /// The access log's line.
    fn write(&self, took: Duration, line: &mut Fields<'_>) {
        line.text(name!("time"), &timestamp(self.time));
        line.text(name!("event"), "exchange");
        line.text(name!("request_id"), self.id.to_str().unwrap_or_default());
        line.text(name!("method"), Words::method(&self.method));
        line.text(name!("path"), &self.path);
        line.text_or_null(name!("route"), self.route.as_ref().map(|route| &*route.settings.path));
        line.text_or_null(name!("upstream"), self.route.as_ref().map(|route| route.upstream_name()));
        line.put(name!("status"), self.status.map(|status| status.as_u16()));
        line.text(name!("outcome"), self.outcome.as_str());
        if let Some(problem) = self.problem {
            line.text(name!("problem"), problem);
        }
        if let Some(cause) = &self.cause {
            line.text(name!("cause"), cause);
        }
        line.put(name!("request_bytes"), self.request_bytes);
        line.put(name!("response_bytes"), self.response_bytes);
        line.milliseconds(name!("acquire_ms"), self.acquire);
        line.milliseconds(name!("seal_ms"), self.seal);
        line.milliseconds(name!("response_ms"), self.response);
        line.milliseconds(name!("total_ms"), Some(took));
        line.put(name!("reused"), self.reused);
        line.put(name!("attempts"), self.attempts);
        line.put(name!("caller_gone"), self.caller_gone);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.recorder.in_flight.dec();
        let took = self.began.elapsed();
        if std::thread::panicking() {
            // What was read to be told as a whole has not been told.
            if std::mem::take(&mut self.reads_on) && !self.caller_gone {
                self.status = None;
            }
            self.lost(&Problem::Internal);
            if self.outcome == Outcome::Answered {
                self.outcome = Outcome::Unknown;
            }
        }
        if self.status.is_none() && self.problem.is_none() {
            self.caller_gone();
        }
        if self.reads_on {
            self.read_no_further();
        }
        let metrics = self.route.as_ref().map_or(&self.recorder.unrouted, |route| &route.metrics);
        metrics.count(self.status.unwrap_or(CLIENT_CLOSED), self.outcome, took.as_secs_f64());
        // A safe request may be repeated by anyone: its line is no more precious than others. Of an unsafe one whose
        // caller was not told the end, the line is all that is known.
        let untold = self.outcome == Outcome::Unknown || (self.outcome == Outcome::Answered && self.caller_gone);
        let importance = if untold && !self.is_safe() { Importance::Keep } else { Importance::Usual };
        self.recorder.log.fields(importance, |line| self.write(took, line));
    }
}

/// What nginx made the custom: the caller left before there was a status. In metrics only; no such answer exists.
const CLIENT_CLOSED: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => unreachable!(),
};
