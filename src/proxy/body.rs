//! Request bodies, collected and hashed as their frames arrive, under limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use http_body::Body as _;
use http_body::Frame;
use hyper::body::Incoming;
use std::future::poll_fn;
use std::pin::Pin;
use tokio::time::timeout;

use super::problem::Problem;
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
}

/// Collects a body. A declared length over the limit is refused before the caller sends a byte of it.
pub(super) async fn collect(
    mut incoming: Incoming,
    rules: &Rules<'_>,
    digest: Option<BodyDigest>,
) -> Result<Collected, Problem> {
    if incoming.size_hint().lower() > rules.limit {
        return Err(Problem::BodyTooLarge(rules.limit));
    }
    let mut collecting = Collecting { payload: Payload::default(), digest, charge: Charge::none(rules.budget) };
    if !incoming.is_end_stream() {
        collecting.charge.set_aside(rules.budget.of_a_wait())?;
        timeout(rules.total, collecting.take_all(&mut incoming, rules))
            .await
            .map_err(|_| Problem::BodyTimeout(rules.total))??;
    }
    Ok(Collected {
        payload: collecting.payload,
        digest: collecting.digest.map(BodyDigest::finish),
        _charge: collecting.charge,
    })
}

struct Collecting {
    payload: Payload,
    digest: Option<BodyDigest>,
    charge: Charge,
}

impl Collecting {
    async fn take_all(&mut self, incoming: &mut Incoming, rules: &Rules<'_>) -> Result<(), Problem> {
        loop {
            let next = timeout(rules.pause, poll_fn(|cx| Pin::new(&mut *incoming).poll_frame(cx))).await;
            match next.map_err(|_| Problem::BodyTimeout(rules.pause))? {
                None => return Ok(()),
                Some(Err(error)) => return Err(Problem::BodyCut(error)),
                Some(Ok(frame)) => self.take(frame, rules.limit)?,
            }
        }
    }

    /// Trailers are dropped: a header that comes behind the body could be neither checked nor signed.
    fn take(&mut self, frame: Frame<bytes::Bytes>, limit: u64) -> Result<(), Problem> {
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

/// The bytes that all buffered bodies of the process may hold together.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), limit })
    }

    /// What a request costs that waits for its body: about its own size in memory. One HTTP/2 connection may have many.
    fn of_a_wait(&self) -> u64 {
        WAIT.min(self.limit / 256)
    }
}

const WAIT: u64 = 4096;

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
        let used = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.held += bytes;
        if used > self.budget.limit { Err(Problem::BufferFull) } else { Ok(()) }
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
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_holds_what_it_was_given_or_what_came_whichever_is_more() {
        let budget = Budget::new(256 * 4096);
        let used = || budget.used.load(Ordering::Relaxed);
        let mut charge = Charge::none(&budget);
        charge.set_aside(budget.of_a_wait()).expect("room");
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
        let budget = Budget::new(10);
        assert_eq!(budget.of_a_wait(), 0, "a body as large as the budget still fits");
        let mut one = Charge::none(&budget);
        one.add(10).expect("room");
        let mut other = Charge::none(&budget);
        assert!(matches!(other.add(1), Err(Problem::BufferFull)));
        drop(one);
        assert_eq!(budget.used.load(Ordering::Relaxed), 1);
        drop(other);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
