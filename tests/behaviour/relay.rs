//! What stands between proxy and bank, a balancer or a firewall: it forgets connections that are idle for too long,
//! each in its own way.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::reset;

/// How it forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgets {
    /// With FIN to both sides.
    Closing,
    /// With RST to both sides.
    Resetting,
    /// Without a word: whatever comes later is dropped.
    Silently,
}

/// Starts one in front of `bank`; returns its address.
pub(crate) fn start(bank: SocketAddr, idle: Duration, forgets: Forgets) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for proxy in listener.incoming().map_while(Result::ok) {
            let Ok(bank) = TcpStream::connect(bank) else { return };
            let link = Arc::new(Link { last: Mutex::new(Instant::now()), forgotten: AtomicBool::new(false) });
            for (from, to) in [(&proxy, &bank), (&bank, &proxy)] {
                let (from, to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                let link = Arc::clone(&link);
                std::thread::spawn(move || link.carry(from, to));
            }
            std::thread::spawn(move || link.watch(idle, forgets, &[proxy, bank]));
        }
    });
    address
}

struct Link {
    last: Mutex<Instant>,
    forgotten: AtomicBool,
}

impl Link {
    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = [0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            if !self.forgotten.load(Ordering::SeqCst) {
                *self.last.lock().expect("no panic") = Instant::now();
                if to.write_all(&chunk[..read]).is_err() {
                    return;
                }
            }
        }
    }

    fn watch(&self, idle: Duration, forgets: Forgets, sockets: &[TcpStream]) {
        while self.last.lock().expect("no panic").elapsed() < idle {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.forgotten.store(true, Ordering::SeqCst);
        for socket in sockets {
            // One that its owner has closed already is forgotten as well.
            let _ = match forgets {
                Forgets::Closing => socket.shutdown(Shutdown::Both),
                // The last holders end once there is nothing more to read.
                Forgets::Resetting => reset(socket).and_then(|()| socket.shutdown(Shutdown::Read)),
                Forgets::Silently => Ok(()),
            };
        }
    }
}
