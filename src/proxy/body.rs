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
}

/// One body's share of the budget, given back when the body is gone.
struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    fn none(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    fn add(&mut self, bytes: u64) -> Result<(), Problem> {
        let used = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bytes += bytes;
        if used > self.budget.limit { Err(Problem::BufferFull) } else { Ok(()) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
