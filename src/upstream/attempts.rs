//! One TCP connection to whichever of several addresses answers first (RFC 8305): families interleave, a silent
//! address delays the next by a quarter of a second, a failed one not at all. Must not know names.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// What became of each address; no connection stands. Displays as `ADDRESS: what happened`, separated by semicolons.
#[derive(Debug)]
pub struct Attempts(Vec<(SocketAddr, Fate)>);

#[derive(Debug)]
enum Fate {
    Untried,
    Silent,
    Failed(io::Error),
}

/// Connects to the first of `addresses` that answers, within `limit` over all of them. The other attempts are dropped.
pub(super) async fn connect(addresses: Vec<SocketAddr>, limit: Duration) -> Result<TcpStream, Attempts> {
    let attempts = interleaved(addresses).into_iter().map(|address| (address, Fate::Untried)).collect();
    let mut race = Race { attempts: Attempts(attempts), next: 0, running: JoinSet::new() };
    match timeout(limit, race.run()).await {
        Ok(Some(stream)) => Ok(stream),
        Ok(None) | Err(_) => Err(race.attempts),
    }
}

impl Attempts {
    /// Whether an address answered that nobody listens there.
    pub(super) fn is_refused(&self) -> bool {
        let refused =
            |fate: &Fate| matches!(fate, Fate::Failed(error) if error.kind() == io::ErrorKind::ConnectionRefused);
        self.0.iter().any(|(_, fate)| refused(fate))
    }

    /// Whether time ran out before each address had failed.
    pub(super) fn is_timeout(&self) -> bool {
        self.0.iter().any(|(_, fate)| !matches!(fate, Fate::Failed(_)))
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, fate)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {fate}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untried => f.write_str("not tried"),
            Self::Silent => f.write_str("no answer"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Attempts {}

/// The attempts under way, which end with it.
struct Race {
    attempts: Attempts,
    /// The address that is tried next.
    next: usize,
    running: JoinSet<(usize, io::Result<TcpStream>)>,
}

impl Race {
    /// `None`: every address has failed.
    async fn run(&mut self) -> Option<TcpStream> {
        loop {
            self.start_next();
            tokio::select! {
                ended = self.running.join_next() => match ended?.ok() {
                    Some((_, Ok(stream))) => return Some(stream),
                    Some((index, Err(error))) => self.attempts.0[index].1 = Fate::Failed(error),
                    // Nobody aborts an attempt before the race ends, and a connect does not panic.
                    None => {}
                },
                () = sleep(STAGGER), if self.next < self.attempts.0.len() => {}
            }
        }
    }

    fn start_next(&mut self) {
        let index = self.next;
        let Some((address, fate)) = self.attempts.0.get_mut(index) else { return };
        *fate = Fate::Silent;
        let address = *address;
        self.next += 1;
        self.running.spawn(async move { (index, dial(address).await) });
    }
}

/// "Connection Attempt Delay" of RFC 8305 section 5.
const STAGGER: Duration = Duration::from_millis(250);

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Whole requests leave in one write; waiting for more would only add latency.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Families in turn, beginning with that of the first address, each in its order (RFC 8305 section 4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut turns = Vec::new();
    loop {
        let before = turns.len();
        turns.extend(one.next());
        turns.extend(other.next());
        if turns.len() == before {
            return turns;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.expect("a port")
    }

    /// An address that answers nothing: its queue of connections is full. Both values keep it so.
    async fn silent() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let listener = socket.listen(0).expect("it listens");
        let address = listener.local_addr().expect("bound");
        let mut held = Vec::new();
        // Twice, because on a busy machine one may be late for which there is a place.
        for _ in 0..2 {
            while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
                held.push(stream.expect("a place in the queue"));
            }
        }
        (address, (listener, held))
    }

    async fn refusing() -> SocketAddr {
        listener().await.local_addr().expect("bound")
    }

    #[test]
    fn families_take_turns() {
        let parse =
            |text: &[&str]| -> Vec<SocketAddr> { text.iter().map(|text| text.parse().expect("an address")).collect() };
        for (given, expected) in [
            (&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1"][..], &["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"][..]),
            (&["1.0.0.1:1", "1.0.0.2:1", "[::1]:1"], &["1.0.0.1:1", "[::1]:1", "1.0.0.2:1"]),
            (&["1.0.0.1:1"], &["1.0.0.1:1"]),
            (&[], &[]),
        ] {
            assert_eq!(interleaved(parse(given)), parse(expected));
        }
    }

    #[tokio::test]
    async fn a_silent_address_costs_a_quarter_of_a_second() {
        let ((silent, _held), listener) = (silent().await, listener().await);
        let alive = listener.local_addr().expect("bound");
        let began = Instant::now();
        let stream = connect(vec![silent, alive], LIMIT).await.expect("a connection");
        assert_eq!(stream.peer_addr().expect("connected"), alive);
        assert!((STAGGER..STAGGER * 4).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn an_address_that_refuses_costs_nothing() {
        let listener = listener().await;
        let mut addresses = vec![refusing().await; 8];
        addresses.push(listener.local_addr().expect("bound"));
        let began = Instant::now();
        connect(addresses, LIMIT).await.expect("a connection");
        // As silent ones, the eight would cost twice this.
        assert!(began.elapsed() < STAGGER * 4, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn all_attempts_are_told() {
        let one = refusing().await;
        let attempts = connect(vec![one], LIMIT).await.expect_err("nobody listens");
        assert!(attempts.is_refused() && !attempts.is_timeout(), "{attempts}");
        let (silent, _held) = silent().await;
        let began = Instant::now();
        let addresses = vec![one, silent, silent, silent];
        let attempts = connect(addresses, STAGGER + STAGGER / 2).await.expect_err("nobody answers");
        assert!(began.elapsed() < STAGGER * 3, "{:?}", began.elapsed());
        assert!(attempts.is_refused() && attempts.is_timeout(), "{attempts}");
        let told = attempts.to_string();
        let told: Vec<&str> = told.split("; ").collect();
        assert!(told[0].starts_with(&format!("{one}: Connection refused")), "{told:?}");
        assert_eq!(
            told[1..],
            [format!("{silent}: no answer"), format!("{silent}: no answer"), format!("{silent}: not tried")]
        );
    }
}
