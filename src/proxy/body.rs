//! Request bodies, collected and hashed as their frames arrive, under limits.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http_body::Body as _;
use http_body::Frame;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};

use super::clock::Busy;
use super::problem::Problem;
use super::stop::soon;
use crate::seal::digest::BodyDigest;
use crate::upstream::Payload;

/// A whole request body: its frames as they came in, and their digest.
pub(super) struct Collected {
    pub(super) payload: Payload,
    /// Rendered for a sealed route.
    pub(super) digest: Option<HeaderValue>,
    _charge: Charge,
}

impl Collected {
    /// The body of a request that has none.
    pub(super) fn nothing(digest: Option<BodyDigest>, budget: &Arc<Budget>) -> Self {
        Collecting::new(digest, budget).finish()
    }

    /// Whether there is at least one byte.
    pub(super) fn is_present(&self) -> bool {
        !self.payload.is_empty()
    }
}

/// How a body is collected.
pub(super) struct Rules<'a> {
    /// Bytes at most.
    pub(super) limit: u64,
    /// Between two frames.
    pub(super) pause: Duration,
    /// For all of it.
    pub(super) total: Duration,
    /// Bytes of all bodies at most.
    pub(super) budget: &'a Arc<Budget>,
    /// What the request's head holds in memory.
    pub(super) head: u64,
    /// Whether it comes on a stream of HTTP/2.
    pub(super) is_stream: bool,
}

/// Collects a body. A declared length over the limit is refused before the caller sends a byte of it.
pub(super) async fn collect(
    incoming: &mut Incoming,
    rules: &Rules<'_>,
    digest: Option<BodyDigest>,
) -> Result<Collected, Problem> {
    if is_too_large(incoming, rules) {
        return Err(Problem::BodyTooLarge(rules.limit));
    }
    let mut collecting = Collecting::new(digest, rules.budget);
    collecting.charge.set_aside(rules.budget.of_a_wait(rules.head))?;
    collecting.take_all(incoming, rules).await?;
    Ok(collecting.finish())
}

/// Whether a body is refused by the length that it declares, unread.
pub(super) fn is_too_large(incoming: &Incoming, rules: &Rules<'_>) -> bool {
    incoming.size_hint().lower() > rules.limit
}

/// Reads what is left of a body that nobody wants, for a while and up to a length, in a task of its own: a connection
/// that ends over it could overtake the answer (RFC 9112 section 9.6). A caller that waits for leave may send it all
/// the same (RFC 9110 section 10.1.1): where not even that `is_sure`, a silence is its end. `busy` says meanwhile that
/// the connection is.
pub(super) fn forget(incoming: Incoming, busy: Busy, is_sure: bool) {
    let forgetting = timeout(LINGER, read_on(incoming, if is_sure { LINGER } else { SILENCE }));
    tokio::spawn(async move {
        let _ = forgetting.await;
        drop(busy);
    });
}

/// For how long, and how many bytes.
const LINGER: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(1);
pub(super) const FORGOTTEN: u64 = 16 << 20;

async fn read_on(mut incoming: Incoming, silence: Duration) {
    let mut read = 0;
    while read <= FORGOTTEN {
        let frame = timeout(silence, poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx))).await;
        let Ok(Some(Ok(frame))) = frame else { return };
        read += frame.data_ref().map_or(0, Bytes::len) as u64;
    }
}

struct Collecting {
    payload: Payload,
    digest: Option<BodyDigest>,
    charge: Charge,
}

impl Collecting {
    fn new(digest: Option<BodyDigest>, budget: &Arc<Budget>) -> Self {
        Self { payload: Payload::default(), digest, charge: Charge::none(budget) }
    }

    fn finish(self) -> Collected {
        Collected { payload: self.payload, digest: self.digest.map(BodyDigest::finish), _charge: self.charge }
    }

    async fn take_all(&mut self, incoming: &mut Incoming, rules: &Rules<'_>) -> Result<(), Problem> {
        let began = Instant::now();
        loop {
            let mut next = poll_fn(|cx| Pin::new(&mut *incoming).poll_frame(cx));
            let next = match soon(Pin::new(&mut next)).await {
                Some(next) => next,
                None => {
                    // A body that comes in drops is not waited for much longer than one that does not come.
                    let slowest = began + rules.pause + Duration::from_secs(self.payload.len() / LEAST_RATE);
                    let (pause, end) = (slowest.min(Instant::now() + rules.pause), began + rules.total);
                    let (setting, limit) =
                        if end < pause { ("body_total", rules.total) } else { ("body", rules.pause) };
                    timeout_at(pause.min(end), next).await.map_err(|_| Problem::BodyTimeout(setting, limit))?
                }
            };
            match next {
                // hyper tells a stream that was reset with NO_ERROR like one that has ended (RFC 9113 section 8.1):
                // whoever gave the request up half-way did not send the half.
                None if rules.is_stream && !incoming.is_end_stream() => return Err(Problem::BodyCut(None)),
                None => return Ok(()),
                Some(Err(error)) => return Err(Problem::BodyCut(Some(error))),
                Some(Ok(frame)) => self.take(frame, rules.limit)?,
            }
            // Of a body whose length was told hyper knows the end with its last frame.
            if incoming.is_end_stream() {
                return Ok(());
            }
        }
    }

    /// Trailers are dropped: a header that comes behind the body could be neither checked nor signed.
    fn take(&mut self, frame: Frame<Bytes>, limit: u64) -> Result<(), Problem> {
        let Ok(data) = frame.into_data() else { return Ok(()) };
        if self.payload.len() + data.len() as u64 > limit {
            return Err(Problem::BodyTooLarge(limit));
        }
        self.charge.add(data.len() as u64)?;
        if let Some(digest) = &mut self.digest {
            digest.update(&data);
        }
        self.payload.push(data);
        Ok(())
    }
}

/// Bytes a second, on average, that a body must come with beyond its first pause: far below any network that a caller
/// is in.
const LEAST_RATE: u64 = 16 * 1024;

/// The bytes that all buffered bodies of the process may hold together.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicU64,
    limit: u64,
    /// What only small bodies may still take, so that a few large ones keep no payment out.
    reserve: u64,
    /// What this one is a part of.
    whole: Option<Arc<Self>>,
}

impl Budget {
    /// A budget of `limit` bytes, of which one body may hold `largest`.
    pub(super) fn new(limit: u64, largest: u64) -> Arc<Self> {
        let reserve = (limit / 4).min(limit.saturating_sub(largest));
        Arc::new(Self { used: AtomicU64::new(0), limit, reserve, whole: None })
    }

    /// What one connection may hold of it when it is used up.
    pub(super) fn share(&self) -> u64 {
        (self.limit / 64).max(SMALL)
    }

    /// A part of a budget: what it holds, the whole holds too.
    pub(super) fn part(whole: &Arc<Self>, limit: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), limit, reserve: 0, whole: Some(Arc::clone(whole)) })
    }

    /// Counts bytes; whether they are within the budget for somebody who then holds `held`.
    fn take(&self, bytes: u64, held: u64) -> bool {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let open = if held > SMALL { self.limit - self.reserve } else { self.limit };
        let within = bytes == 0 || used <= open;
        self.whole.as_ref().is_none_or(|whole| whole.take(bytes, held)) && within
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.give_back(bytes);
        }
    }

    /// What a request costs that waits for its body: its own size in memory. One HTTP/2 connection may have many.
    fn of_a_wait(&self, head: u64) -> u64 {
        (WAIT + COPIES * head).min(self.limit / 256)
    }
}

/// Of a request's own state, without its head.
const WAIT: u64 = 4096;
/// What a head takes beside its bytes, in buffers that it came in and tables: measured with 2,000 heads of 26 KB that
/// wait on HTTP/2.
const COPIES: u64 = 4;
/// What most payments are well below.
pub(super) const SMALL: u64 = 64 * 1024;

/// One body's share of the budget, given back when the body is gone.
pub(super) struct Charge {
    budget: Arc<Budget>,
    /// Of the budget.
    held: u64,
    /// Of what is held.
    filled: u64,
}

impl Charge {
    pub(super) fn none(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), held: 0, filled: 0 }
    }

    /// Holds bytes that have yet to come.
    fn set_aside(&mut self, bytes: u64) -> Result<(), Problem> {
        self.held += bytes;
        if self.budget.take(bytes, self.held) { Ok(()) } else { Err(Problem::BufferFull(self.budget.limit)) }
    }

    /// Bytes have come, and count whether they may or not.
    pub(super) fn add(&mut self, bytes: u64) -> Result<(), Problem> {
        self.filled += bytes;
        self.set_aside(self.filled.saturating_sub(self.held))
    }

    /// Bytes that are there.
    pub(super) fn bytes(&self) -> u64 {
        self.filled
    }

    /// Bytes have gone.
    pub(super) fn remove(&mut self, bytes: u64) {
        self.filled -= bytes;
        self.held -= bytes;
        self.budget.give_back(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_holds_what_it_was_given_or_what_came_whichever_is_more() {
        let budget = Budget::new(256 * 4096, 4096);
        let used = || budget.used.load(Ordering::Relaxed);
        let mut charge = Charge::none(&budget);
        charge.set_aside(budget.of_a_wait(100)).expect("room");
        assert_eq!(used(), 4096);
        charge.add(4000).expect("room");
        assert_eq!(used(), 4096);
        charge.add(1000).expect("room");
        assert_eq!(used(), 5000);
        charge.remove(1500);
        assert_eq!(used(), 3500);
        drop(charge);
        assert_eq!(used(), 0);
    }

    #[test]
    fn what_does_not_fit_is_given_back_all_the_same() {
        let budget = Budget::new(10, 10);
        assert_eq!(budget.of_a_wait(9), 0, "a body as large as the budget still fits");
        let mut one = Charge::none(&budget);
        one.add(10).expect("room");
        let mut other = Charge::none(&budget);
        assert!(matches!(other.add(1), Err(Problem::BufferFull(10))));
        drop(one);
        assert_eq!(budget.used.load(Ordering::Relaxed), 1);
        drop(other);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn large_bodies_leave_something_for_small_ones() {
        let budget = Budget::new(1 << 20, 1 << 18);
        let mut large = Charge::none(&budget);
        large.add(3 << 18).expect("three quarters");
        assert!(large.add(1).is_err());
        let mut small = Charge::none(&budget);
        small.add(SMALL).expect("the rest");
        assert!(small.add(1).is_err(), "large by now");
    }

    #[test]
    fn what_a_part_holds_the_whole_holds_too() {
        let whole = Budget::new(100, 100);
        let part = Budget::part(&whole, 50);
        let mut charge = Charge::none(&part);
        charge.add(50).expect("room");
        assert!(charge.add(1).is_err());
        assert_eq!(whole.used.load(Ordering::Relaxed), 51);
        let mut other = Charge::none(&whole);
        assert!(other.add(50).is_err(), "one more than the whole has");
        drop((charge, other));
        assert_eq!((whole.used.load(Ordering::Relaxed), part.used.load(Ordering::Relaxed)), (0, 0));
    }
}
