//! The addresses of one name: asked for as an absolute name, with a deadline, once for all who wait at the time, and
//! remembered for a while in case DNS fails. Must not know which addresses are acceptable.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

use super::hosts;

/// One host and port. Lives as long as the process; every reactor asks the same.
pub(super) struct Resolver {
    host: String,
    port: u16,
    limit: Duration,
    look_up: Box<LookUp>,
    state: Mutex<State>,
}

/// Asks for the addresses of a host, and blocks until they are there.
type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

#[derive(Default)]
struct State {
    good: Option<Good>,
    /// The newest look-up. It has ended where its sender is gone.
    newest: Option<watch::Receiver<Option<Told>>>,
}

/// The last look-up that found something.
struct Good {
    addresses: Arc<[IpAddr]>,
    since: Instant,
}

/// What a look-up tells all who wait for it.
#[derive(Clone)]
struct Told(Result<Arc<[IpAddr]>, Arc<io::Error>>);

impl Resolver {
    /// `limit` is how long one caller waits. A look-up itself cannot be cut short: the next caller joins it.
    pub(super) fn new(host: &str, port: u16, limit: Duration) -> Arc<Self> {
        Self::asking(host, port, limit, look_up)
    }

    fn asking(
        host: &str,
        port: u16,
        limit: Duration,
        look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { host: host.to_owned(), port, limit, look_up: Box::new(look_up), state: Mutex::default() })
    }

    /// At least one address, in the order of preference (RFC 6724). While DNS fails: those of the last look-up that
    /// found some, for up to 5 minutes after it.
    pub(super) async fn addresses(self: &Arc<Self>) -> Result<Vec<SocketAddr>, Unresolved> {
        if let Ok(address) = self.host.parse() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let remembered = self.remembered();
        let patience = if remembered.is_some() { self.limit.min(STALE_AFTER) } else { self.limit };
        let found = match timeout(patience, self.join()).await {
            Ok(Told(Ok(addresses))) => return Ok(self.with_port(&addresses)),
            Ok(Told(Err(error))) => Unresolved::Failed(error),
            Err(_) => Unresolved::Silent(self.limit),
        };
        remembered.map(|addresses| self.with_port(&addresses)).ok_or(found)
    }

    /// The end of the look-up that is under way, or of a new one.
    async fn join(self: &Arc<Self>) -> Told {
        let mut newest = self.under_way();
        match newest.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(told)) => told.clone(),
            // Its thread panicked, or its reactor ended.
            _ => Told(Err(Arc::new(io::Error::other("the look-up was abandoned")))),
        }
    }

    fn under_way(self: &Arc<Self>) -> watch::Receiver<Option<Told>> {
        let mut state = self.lock();
        if let Some(newest) = state.newest.as_ref().filter(|newest| newest.has_changed().is_ok()) {
            return newest.clone();
        }
        let (sender, receiver) = watch::channel(None);
        state.newest = Some(receiver.clone());
        let resolver = Arc::clone(self);
        tokio::task::spawn_blocking(move || resolver.ask(&sender));
        receiver
    }

    /// Blocks for as long as the system's resolver does.
    fn ask(&self, waiting: &watch::Sender<Option<Told>>) {
        let found = (self.look_up)(&self.host).and_then(some_of);
        if let Ok(addresses) = &found {
            self.lock().good = Some(Good { addresses: Arc::clone(addresses), since: Instant::now() });
        }
        waiting.send_replace(Some(Told(found.map_err(Arc::new))));
    }

    fn remembered(&self) -> Option<Arc<[IpAddr]>> {
        let state = self.lock();
        let good = state.good.as_ref().filter(|good| good.since.elapsed() < STALE_FOR)?;
        Some(Arc::clone(&good.addresses))
    }

    fn with_port(&self, addresses: &[IpAddr]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| SocketAddr::new(*address, self.port)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole after any panic: nothing is written in halves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a name has no addresses.
#[derive(Debug, Error)]
pub(super) enum Unresolved {
    /// The system's resolver says so, and there is nothing to remember.
    #[error("the name does not resolve")]
    Failed(#[source] Arc<io::Error>),
    /// The system's resolver says nothing.
    #[error("the name did not resolve within {0:?}")]
    Silent(Duration),
}

/// How long an answer serves while DNS fails, from when it was given.
const STALE_FOR: Duration = Duration::from_secs(300);

/// How long DNS may be silent before an older answer serves (RFC 8767 section 5).
const STALE_AFTER: Duration = Duration::from_millis(1800);

/// As many as an answer over UDP could hold, and more than anybody tries in one deadline.
const MAX_ADDRESSES: usize = 32;

fn some_of(mut found: Vec<IpAddr>) -> io::Result<Arc<[IpAddr]>> {
    found.truncate(MAX_ADDRESSES);
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found.into())
}

/// Asks the system. `localhost` is never asked for (RFC 6761 section 6.3); names of the hosts file come before DNS.
fn look_up(host: &str) -> io::Result<Vec<IpAddr>> {
    if host == "localhost" {
        return Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]);
    }
    let listed = hosts::addresses(Path::new(hosts::FILE), host);
    if !listed.is_empty() {
        return Ok(listed);
    }
    let found = absolute(host).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

/// With the dot at its end no search domain is tried: `bank.example` is never `bank.example.corp`, where somebody
/// else might answer.
fn absolute(host: &str) -> (String, u16) {
    (format!("{host}."), 0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    fn bank() -> Vec<IpAddr> {
        vec![IpAddr::from([193, 57, 70, 1])]
    }

    #[test]
    fn names_are_asked_for_absolutely() {
        assert_eq!(absolute("oauth2-apisi.e-i.com").0, "oauth2-apisi.e-i.com.");
        assert_eq!(
            look_up("localhost").expect("known"),
            [IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), [127, 0, 0, 1].into()]
        );
    }

    #[tokio::test]
    async fn an_address_is_no_name() {
        let resolver = Resolver::asking("2a00:1450::1", 8443, LIMIT, |_| panic!("asked"));
        assert_eq!(resolver.addresses().await.expect("itself"), ["[2a00:1450::1]:8443".parse().expect("an address")]);
    }

    #[tokio::test]
    async fn all_who_wait_share_one_look_up() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let resolver = Resolver::asking("bank", 443, LIMIT, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(LIMIT / 4);
            Ok(bank())
        });
        let (one, two) = tokio::join!(resolver.addresses(), resolver.addresses());
        assert_eq!((one.expect("found").len(), two.expect("found").len()), (1, 1));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::sleep(LIMIT / 4).await;
        resolver.addresses().await.expect("found");
        assert_eq!(asked.load(Ordering::SeqCst), 2, "an answer serves the time that it was asked for");
    }

    #[tokio::test]
    async fn the_last_good_answer_serves_while_dns_fails_and_no_longer_than_5_minutes() {
        let asked = AtomicUsize::new(0);
        let resolver = Resolver::asking("bank", 443, LIMIT, move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(bank()),
            1 => Ok(Vec::new()),
            _ => Err(io::Error::other("SERVFAIL")),
        });
        for _ in 0..3 {
            assert_eq!(resolver.addresses().await.expect("found or remembered").len(), 1);
            tokio::time::sleep(LIMIT / 20).await;
        }
        resolver.lock().good.as_mut().expect("remembered").since -= STALE_FOR;
        let error = resolver.addresses().await.expect_err("forgotten");
        assert!(matches!(&error, Unresolved::Failed(error) if error.to_string() == "SERVFAIL"), "{error}");
    }

    #[tokio::test]
    async fn a_look_up_that_hangs_costs_each_caller_its_deadline_and_the_process_one_thread() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let resolver = Resolver::asking("bank", 443, LIMIT / 4, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(LIMIT);
            Ok(bank())
        });
        for _ in 0..2 {
            assert!(matches!(resolver.addresses().await, Err(Unresolved::Silent(_))));
        }
        tokio::time::sleep(LIMIT).await;
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // What came too late for its callers serves the next one, if DNS is silent again.
        assert_eq!(resolver.addresses().await.expect("remembered").len(), 1);
    }

    #[tokio::test]
    async fn a_look_up_that_panics_is_an_error_and_the_next_one_is_new() {
        let asked = AtomicUsize::new(0);
        let resolver = Resolver::asking("bank", 443, LIMIT, move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => panic!("a fault of ours"),
            _ => Ok(bank()),
        });
        assert!(matches!(resolver.addresses().await, Err(Unresolved::Failed(_))));
        tokio::time::sleep(LIMIT / 4).await;
        assert_eq!(resolver.addresses().await.expect("found").len(), 1);
    }
}
