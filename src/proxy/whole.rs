//! An answer that is read to its end before it is relayed: HTTP/1.0 has no chunks, and cannot tell a cut answer of
//! unknown length from a whole one. Must not know where answers come from.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use http::{Response, Version};
use http_body::Body as _;
use tokio::time::{Instant, timeout_at};

use super::body::{Charge, SMALL};
use super::exchange::Exchange;
use super::problem::Problem;
use super::relay::RelayBody;
use super::{Shared, headers};
use crate::upstream::{Answer, Outcome};

/// Reads it, so that it has a length.
pub(super) async fn relay_whole(
    response: Response<Answer>,
    mut exchange: Box<Exchange>,
    shared: Arc<Shared>,
    deadline: Instant,
) -> Result<Response<RelayBody>, (Problem, Box<Exchange>)> {
    let (mut head, mut answer) = response.into_parts();
    exchange.reads_on();
    let (mut body, mut charge) = (BytesMut::new(), Charge::none(&shared.ahead));
    let reading = async {
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx)).await {
            let Ok(data) = frame.map_err(Problem::Cut)?.into_data() else { continue };
            exchange.relayed(data.len() as u64);
            let fits = charge.add(data.len() as u64).is_ok();
            // What a small one takes is nothing to lose the answer to a payment for.
            if charge.bytes() > shared.limits.body || (!fits && charge.bytes() > SMALL) {
                return Err(Problem::TooLargeForHttp10);
            }
            body.extend_from_slice(&data);
        }
        Ok(())
    };
    match timeout_at(deadline, reading).await.unwrap_or(Err(Problem::ExchangeTimeout(Outcome::Answered))) {
        Ok(()) => {
            exchange.done_with_the_bank();
            head.version = Version::HTTP_11;
            headers::inbound(&mut head.headers, head.status, exchange.id());
            Ok(Response::from_parts(head, RelayBody::whole(body.freeze(), charge, exchange)))
        }
        Err(problem) => Err((problem, exchange)),
    }
}
