//! The page to read: what happens to one request, step by step. Not how any step works.
//!
//! The order is the law: route, collect, prepare, acquire, seal, send, relay. A request is sealed only when its
//! connection stands, and nothing touches a header after the seal.

use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::header::{CONNECTION, EXPECT};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::body::{self, Collected};
use super::clock::Busy;
use super::exchange::Exchange;
use super::headers;
use super::problem::Problem;
use super::relay::{Patience, RelayBody};
use super::route::{Found, Route, Routes, Sealing, Transport};
use super::stop::{Interruption, soon};
use super::unwanted::{ToTheEnd, is_unwanted};
use super::whole::relay_whole;
use super::{Proxy, Shared};
use crate::seal;
use crate::upstream::{AcquireError, Answer, Cause, Lease, Outcome, ReactorId, Upstream};

/// A request that is ready to be sealed: all that is left is a connection and a key.
struct Prepared {
    shared: Arc<Shared>,
    reactor: ReactorId,
    /// For the whole exchange.
    deadline: Instant,
    /// As it is of [`Arrived`].
    whole: bool,
    /// The generation that it was prepared under.
    routes: Arc<Routes>,
    route: Arc<Route>,
    head: Parts,
    body: Collected,
}

/// A request whose head is there, with the record that follows it to its end.
pub(super) struct Arrived {
    proxy: Proxy,
    routes: Arc<Routes>,
    head: Parts,
    incoming: Incoming,
    transport: Transport,
    exchange: Box<Exchange>,
    refused: Option<Problem>,
    /// For the whole exchange.
    deadline: Instant,
    /// Whether the caller could not tell a cut answer from a whole one of unknown length: HTTP/1.0 has no chunks.
    whole: bool,
    /// Whether the body is on its way, on a connection that would end with it. On HTTP/2 a stream ends by itself, and
    /// whoever waits for leave to send the body does not send it.
    comes_anyway: bool,
    /// Whether the caller waits for that leave, as far as we know.
    asks_for_leave: bool,
}

impl Arrived {
    /// Begins the exchange, under the caller's id or one of ours. In a box: hyper moves what holds it, and each future
    /// around it would hold it twice.
    pub(super) fn new(proxy: &Proxy, request: Request<Incoming>, transport: Transport) -> Box<Self> {
        let routes = proxy.shared.routes.load_full();
        let (head, incoming) = request.into_parts();
        let (id, refused) = headers::identify(&head.headers);
        let exchange = Exchange::begin(&proxy.shared.recorder, &head, id, routes.words());
        let deadline = Instant::from_std(exchange.began()) + proxy.shared.timeouts.exchange;
        let whole = head.version == Version::HTTP_10;
        let asks_for_leave = head.version < Version::HTTP_2 && head.headers.contains_key(EXPECT);
        let comes_anyway = head.version < Version::HTTP_2 && !asks_for_leave;
        let proxy = proxy.clone();
        Box::new(Self {
            proxy,
            routes,
            head,
            incoming,
            transport,
            exchange,
            refused,
            deadline,
            whole,
            comes_anyway,
            asks_for_leave,
        })
    }

    pub(super) fn id(&self) -> &HeaderValue {
        self.exchange.id()
    }

    pub(super) fn is_head(&self) -> bool {
        self.head.method == Method::HEAD
    }

    /// When the exchange has taken as long as it may.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Forwards the request. Whatever happens, there is an answer.
    pub(super) async fn forward(mut self: Box<Self>, busy: &Busy) -> Response<RelayBody> {
        match self.prepare_in_time(busy).await {
            Ok((route, body)) => {
                let (prepared, exchange) = self.prepared(route, body);
                prepared.deliver(exchange).await
            }
            Err(problem) => self.refuse(&problem, busy),
        }
    }

    /// What is still to come of the body is read and forgotten meanwhile, or the connection's end could overtake the
    /// answer. A rest that is read to its end leaves the connection to the next request; where that is not sure, the
    /// answer says that the connection ends. So it does after a body that came too slowly (RFC 9110 section 15.5.9).
    fn refuse(self: Box<Self>, problem: &Problem, busy: &Busy) -> Response<RelayBody> {
        let mut answer = refuse(problem, self.exchange);
        if self.incoming.is_end_stream() || self.head.version == Version::HTTP_2 {
            return answer;
        }
        let is_short = self.incoming.size_hint().upper().is_some_and(|rest| rest <= body::FORGOTTEN);
        let is_slow = matches!(problem, Problem::BodyTimeout(..) | Problem::ExchangeTimeout(_));
        if !is_short || is_slow || self.asks_for_leave {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        body::forget(self.incoming, busy.beside(), self.comes_anyway);
        answer
    }

    async fn prepare_in_time(&mut self, busy: &Busy) -> Result<(Arc<Route>, Collected), Problem> {
        let shared = Arc::clone(&self.proxy.shared);
        let deadline = self.deadline;
        let mut preparing = pin!(self.prepare(busy));
        let prepared = match soon(preparing.as_mut()).await {
            Some(prepared) => Ok(prepared),
            None => shared.stop.in_time(deadline, preparing).await,
        };
        prepared.map_err(not_sent).flatten()
    }

    /// Finds the route, collects the body, and makes the head what the bank is to receive, all but the seal.
    async fn prepare(&mut self, busy: &Busy) -> Result<(Arc<Route>, Collected), Problem> {
        if let Some(problem) = self.refused.take() {
            return Err(problem);
        }
        let Found { route, target } = self.routes.find(&self.head, self.transport)?;
        self.exchange.routed(&route);
        route.admit(&self.head.method, &target)?;
        route.upstream()?;
        headers::check(&self.head, &route, self.proxy.shared.limits.headers)?;
        // Shed before the body is read, and counted after it: who sends slowly keeps nobody else's place.
        drop(self.proxy.shared.admit()?);
        let digest = route.sealing.sealer().map(|sealer| sealer.digest());
        let body = if self.incoming.is_end_stream() {
            Collected::nothing(digest, &self.proxy.shared.budget)
        } else {
            busy.waits();
            let rules = self.proxy.shared.body_rules(&self.head);
            // Whoever has asked for leave has it now.
            let is_wanted = !body::is_too_large(&self.incoming, &rules);
            self.comes_anyway |= is_wanted && self.head.version == Version::HTTP_11;
            // In a box: it is large, and most requests have no body.
            let collected = Box::pin(body::collect(&mut self.incoming, &rules, digest)).await;
            busy.goes_on();
            collected?
        };
        self.exchange.collected(body.payload.len());
        self.exchange.admitted(self.proxy.shared.admit()?);
        let metrics = &self.proxy.shared.metrics;
        headers::outbound(&mut self.head, target, &route, self.exchange.id(), body.payload.len(), metrics)?;
        Ok((route, body))
    }

    fn prepared(self: Box<Self>, route: Arc<Route>, body: Collected) -> (Box<Prepared>, Box<Exchange>) {
        let Self { proxy: Proxy { shared, reactor }, routes, head, exchange, deadline, whole, .. } = *self;
        (Box::new(Prepared { shared, reactor, deadline, whole, routes, route, head, body }), exchange)
    }
}

impl Prepared {
    async fn deliver(mut self: Box<Self>, mut exchange: Box<Exchange>) -> Response<RelayBody> {
        let shared = Arc::clone(&self.shared);
        let acquired = {
            let deadline = self.deadline;
            let acquiring = pin!(self.acquire(Upstream::acquire, &mut exchange));
            shared.stop.in_time(deadline, acquiring).await
        };
        let lease = match acquired.map_err(not_sent).flatten() {
            Ok(lease) => lease,
            Err(problem) => return refuse(&problem, exchange),
        };
        if let Err(problem) = self.seal_to_send(&mut exchange).await {
            return refuse(&problem, exchange);
        }
        let id = exchange.id().clone();
        let is_safe = exchange.is_safe();
        let mut sending = pin!(ToTheEnd::new(Box::pin(self.send(lease, exchange)), is_safe));
        let answer = shared.stop.unless_stopped(sending.as_mut()).await;
        sending.told();
        // The exchange goes with the work, and its record is logged as cut by the stop.
        answer.unwrap_or_else(|| without_exchange(&Problem::Stopped(Outcome::Unknown), &id))
    }

    async fn send(mut self: Box<Self>, lease: Lease, mut exchange: Box<Exchange>) -> Response<RelayBody> {
        let reused = lease.is_reused();
        let sent = self.transmit(lease, &mut exchange).await;
        self.conclude(sent, reused, exchange).await
    }

    /// What the caller gets, or the way to it. Rare ways go in boxes: they are not part of every request's state.
    fn conclude(
        self: Box<Self>,
        sent: Result<Response<Answer>, Problem>,
        reused: bool,
        exchange: Box<Exchange>,
    ) -> Either<Ready<Response<RelayBody>>, BoxFuture<'static, Response<RelayBody>>> {
        match sent {
            Err(problem) if reused && is_proven_unsent(&problem) && !is_unwanted() => {
                Either::Right(self.send_once_more(problem, exchange).boxed())
            }
            Err(problem) => Either::Left(ready(refuse(&problem, exchange))),
            Ok(response) if self.whole && response.body().size_hint().exact().is_none() => {
                let Self { shared, deadline, .. } = *self;
                let relaying = relay_whole(response, exchange, shared, deadline);
                let refuse = |(problem, exchange): (Problem, _)| refuse(&problem, exchange);
                Either::Right(relaying.map(move |relayed| relayed.unwrap_or_else(refuse)).boxed())
            }
            Ok(response) => Either::Left(ready(relay(response, exchange, self.shared.patience(self.deadline)))),
        }
    }

    /// A bank may close an idle connection at the very moment we pick it. Where it is proven that nothing of the
    /// request left, it is sealed afresh and sent once more, on a new connection where one may be made. Where none may,
    /// it can meet the same on what comes back, of a bank that closes each without a word: then it waits for a new one.
    /// For a caller who has left by then, the first `problem` is the end of it: nobody would learn what became of a
    /// payment that is sent now.
    async fn send_once_more(mut self: Box<Self>, problem: Problem, mut exchange: Box<Exchange>) -> Response<RelayBody> {
        let shared = Arc::clone(&self.shared);
        let dialled = {
            let deadline = self.deadline;
            let dialling = pin!(self.dial_and_seal(problem, &mut exchange));
            shared.stop.in_time(deadline, dialling).await
        };
        let (sent, reused) = match dialled.map_err(not_sent).flatten() {
            Ok(lease) => {
                let reused = lease.is_reused();
                (self.transmit(lease, &mut exchange).await, reused)
            }
            Err(problem) => (Err(problem), false),
        };
        self.conclude(sent, reused, exchange).await
    }

    /// A connection under the certificate that is in use now: a body may have taken minutes to come, and a place among
    /// the bank's connections seconds.
    async fn acquire(
        &mut self,
        acquire: impl AsyncFn(&Upstream, ReactorId) -> Result<Lease, AcquireError>,
        exchange: &mut Exchange,
    ) -> Result<Lease, Problem> {
        let began = Instant::now();
        self.renew();
        let acquired = loop {
            match acquire(self.route.upstream()?, self.reactor).await {
                Err(AcquireError::Replaced) if self.renew() => {}
                result => break result,
            }
        };
        let lease = acquired.map_err(Problem::Acquire)?;
        exchange.acquired(began.elapsed(), lease.is_reused());
        Ok(lease)
    }

    /// Goes over to the present generation, where it differs in certificates and keys alone. Nothing is sealed yet.
    fn renew(&mut self) -> bool {
        let present = self.shared.routes.load();
        if Arc::ptr_eq(&present, &self.routes) {
            return false;
        }
        let Some(route) = present.renewed(&self.routes, &self.route) else { return false };
        self.route = Arc::clone(route);
        self.routes = Arc::clone(&present);
        true
    }

    async fn dial_and_seal(&mut self, problem: Problem, exchange: &mut Exchange) -> Result<Lease, Problem> {
        exchange.unsent();
        let lease = match exchange.attempts() {
            ..2 => self.acquire(Upstream::acquire_again, exchange).await?,
            _ => self.acquire(Upstream::acquire_new, exchange).await?,
        };
        if !is_unwanted() {
            self.seal_to_send(exchange).await?;
        }
        // A token may have taken its time.
        if is_unwanted() { Err(problem) } else { Ok(lease) }
    }

    /// The last step before the request goes. A process that has stopped meanwhile sends nothing: its callers have been
    /// told so.
    async fn seal_to_send(&mut self, exchange: &mut Exchange) -> Result<(), Problem> {
        self.seal(exchange).await?;
        if self.shared.stop.has_come() { Err(Problem::Stopped(Outcome::NotSent)) } else { Ok(()) }
    }

    async fn seal(&mut self, exchange: &mut Exchange) -> Result<(), Problem> {
        let (sealer, digest) = match (&self.route.sealing, &self.body.digest) {
            (Sealing::Never, _) => return Ok(()),
            (Sealing::By(sealer), Some(digest)) => (sealer, digest),
            // What has to be sealed goes sealed or not at all.
            (Sealing::By(_) | Sealing::ByNobody, _) => return Err(Problem::IdentityUnusable),
        };
        let began = Instant::now();
        let body = seal::Body { digest, present: self.body.is_present() };
        let limit = self.shared.timeouts.seal;
        let sealing = pin!(sealer.seal(&mut self.head, body, seal::Patience::of(limit), SystemTime::now));
        if sealer.key().is_on_token() {
            let sealing = pin!(timeout(limit, sealing));
            let sealed = self.shared.stop.in_time(self.deadline, sealing).await.map_err(not_sent)?;
            sealed.map_err(|_| Problem::SealTimeout(limit))?.map_err(Problem::Seal)?;
        } else {
            // This thread makes it, now or as soon as its event loop brings nothing more: a timer would never be in
            // time.
            sealing.await.map_err(Problem::Seal)?;
        }
        exchange.sealed(began.elapsed());
        Ok(())
    }

    /// Sends the sealed head. A copy stays here only where the request may have to go out a second time.
    fn transmit(
        &mut self,
        lease: Lease,
        exchange: &mut Exchange,
    ) -> impl Future<Output = Result<Response<Answer>, Problem>> + Send {
        let (head, payload) = if lease.is_reused() {
            (self.head.clone(), self.body.payload.clone())
        } else {
            (std::mem::replace(&mut self.head, empty_head()), std::mem::take(&mut self.body.payload))
        };
        exchange.sending();
        // One timer for both deadlines: whichever is first.
        let deadline = self.deadline;
        lease.send_until(Request::from_parts(head, payload), deadline).map(move |sent| {
            let response = sent.map_err(|error| match error.cause {
                Cause::ResponseTimeout(_) if Instant::now() >= deadline => Problem::ExchangeTimeout(error.outcome),
                _ => Problem::Send(error),
            })?;
            exchange.answered(response.status(), response.body().took());
            Ok(response)
        })
    }
}

/// Whether nothing of the request left, by our own count: an alert of the bank's is no reason to send it once more.
fn is_proven_unsent(problem: &Problem) -> bool {
    let refused = |cause: &Cause| matches!(cause, Cause::QwacRefused(_));
    matches!(problem, Problem::Send(error) if error.outcome == Outcome::NotSent && !refused(&error.cause))
}

/// Before anything has left.
fn not_sent(interruption: Interruption) -> Problem {
    match interruption {
        Interruption::Stopped => Problem::Stopped(Outcome::NotSent),
        Interruption::Late => Problem::ExchangeTimeout(Outcome::NotSent),
    }
}

fn empty_head() -> Parts {
    Request::new(()).into_parts().0
}

fn relay(response: Response<Answer>, exchange: Box<Exchange>, patience: Patience) -> Response<RelayBody> {
    let (mut head, answer) = response.into_parts();
    // An old bank's HTTP/1.0 is a matter of its connection, not of the caller's.
    head.version = Version::HTTP_11;
    headers::inbound(&mut head.headers, head.status, exchange.id());
    Response::from_parts(head, RelayBody::bank(answer, exchange, patience))
}

fn refuse(problem: &Problem, mut exchange: Box<Exchange>) -> Response<RelayBody> {
    let answer = problem.answer(exchange.id());
    exchange.failed(problem, answer.status());
    answer.map(|text| RelayBody::problem(text, Some(exchange)))
}

/// The answer where the exchange is lost, which its record has logged already.
pub(super) fn without_exchange(problem: &Problem, id: &HeaderValue) -> Response<RelayBody> {
    problem.answer(id).map(|text: Bytes| RelayBody::problem(text, None))
}
