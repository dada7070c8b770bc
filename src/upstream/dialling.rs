//! A connection on its way, which outlives whoever asked for it. Must not know how it is made.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

use super::connector::Established;
use super::handback::Handback;
use super::pool::{Connection, Pool};
use super::seats::Seats;
use super::{AcquireError, Destination, ReactorId};

/// Longer than most handshakes of slow banks take, and far below their deadlines.
const MOMENT: Duration = Duration::from_secs(1);

type Establishing = Pin<Box<dyn Future<Output = Result<Established, AcquireError>> + Send>>;

/// A connection on its way. Dropped before it is there, it goes on by itself, within the deadlines that it has, and
/// ends in the pool. Others may wait for the right to one meanwhile: they have this one sooner than one of their own,
/// unless its bank is silent. So it gives way to them after a moment.
pub(super) struct Dialling {
    /// `None` once it has ended.
    establishing: Option<Establishing>,
    destination: Arc<Destination>,
    pool: Arc<Pool>,
    reactor: ReactorId,
}

impl Dialling {
    pub(super) fn new(
        establishing: Establishing,
        destination: Arc<Destination>,
        pool: Arc<Pool>,
        reactor: ReactorId,
    ) -> Self {
        Self { establishing: Some(establishing), destination, pool, reactor }
    }
}

impl Future for Dialling {
    type Output = Result<Connection, AcquireError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let establishing = self.establishing.as_mut().expect("polled until it has ended");
        let established = ready!(establishing.as_mut().poll(cx));
        self.establishing = None;
        Poll::Ready(established.map(|established| Connection::new(established, self.reactor)))
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let Some(establishing) = self.establishing.take() else { return };
        // Without a runtime the process is at its end.
        let Ok(runtime) = Handle::try_current() else { return };
        let (destination, pool, reactor) = (Arc::clone(&self.destination), Arc::clone(&self.pool), self.reactor);
        runtime.spawn(async move {
            match unless_wanted(&destination.connections, establishing).await {
                Some(Ok(established)) => Handback::leave(Connection::new(established, reactor), pool, reactor),
                // Nobody is left to be told.
                Some(Err(error)) => destination.failed(&error),
                None => {}
            }
        });
    }
}

/// What comes of it. `None`: it had its moment, and somebody waits for its seat.
async fn unless_wanted(seats: &Seats, mut establishing: Establishing) -> Option<Result<Established, AcquireError>> {
    loop {
        match timeout(MOMENT, &mut establishing).await {
            Ok(established) => return Some(established),
            Err(_) if seats.is_wanted() => return None,
            Err(_) => {}
        }
    }
}
