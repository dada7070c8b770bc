//! The way to the bank: its addresses, dead ones among them.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{FakeBank, Rig, config};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

/// An address that answers nothing for as long as this lives: its queue of connections is full.
struct Silent {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Silent {
    /// `None` on a machine without this address.
    fn at(address: SocketAddr) -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v6()?;
            socket.bind(address)?;
            socket.listen(0)?.into_std()
        });
        let listener = listener.ok()?;
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            queue.push(stream);
        }
        Some(Self { _listener: listener, _queue: queue })
    }
}

/// The other address of `localhost`, which is tried first.
fn other_address(bank: SocketAddr) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, bank.port()))
}

#[test]
fn a_silent_address_costs_a_fraction_of_a_second_and_not_the_request() {
    let bank = FakeBank::good();
    let Some(_silent) = Silent::at(other_address(bank.address)) else {
        eprintln!("SKIPPED: this machine has no IPv6 loopback");
        return;
    };
    let rig = Rig::before(&bank);
    let began = Instant::now();
    assert_eq!(rig.get(ACCOUNTS).status, 200, "{}", rig.log.text());
    let took = began.elapsed();
    assert!((Duration::from_millis(250)..Duration::from_secs(2)).contains(&took), "{took:?}");
}

#[test]
fn an_address_that_refuses_costs_nothing_and_all_attempts_are_told() {
    let bank = FakeBank::good();
    let began = Instant::now();
    assert_eq!(Rig::before(&bank).get(ACCOUNTS).status, 200);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let rig = Rig::start(&config(nobody, "", ""));
    assert_eq!(rig.get(ACCOUNTS).problem(), "upstream-refused");
    let line = rig.log.wait(1).remove(0);
    let cause = line["cause"].as_str().expect("a cause");
    for address in [other_address(nobody), nobody] {
        assert!(cause.contains(&format!("{address}: ")), "{cause}");
    }
}

#[test]
fn silent_addresses_alone_are_a_timeout() {
    let bank = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let Some(_silent) = Silent::at(other_address(bank)) else {
        eprintln!("SKIPPED: this machine has no IPv6 loopback");
        return;
    };
    let yaml = config(bank, "", "timeouts: { connect: 400ms }\n").replace("https://localhost", "https://[::1]");
    let answer = Rig::start(&yaml).get(ACCOUNTS);
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (504, "upstream-connect-timeout", "not_sent"));
}
