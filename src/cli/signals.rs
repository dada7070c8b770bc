//! SIGTERM, SIGINT and SIGHUP, one after the other.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app;

/// The signals that ask a process to end or to read its configuration anew.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on the signals no longer kill the process.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> app::Signal {
        tokio::select! {
            _ = self.terminate.recv() => app::Signal::Terminate,
            _ = self.interrupt.recv() => app::Signal::Interrupt,
            _ = self.hangup.recv() => app::Signal::Reload,
        }
    }

    /// Waits for the next one, or for the terminal to close: a person is done with us.
    #[cfg(feature = "sandbox")]
    pub(super) async fn next_or_hangup(&mut self) -> app::Signal {
        self.next().await;
        app::Signal::Interrupt
    }
}
