//! SIGTERM and SIGINT, one after the other; SIGHUP kills nobody.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::tell;
use crate::app;

/// The signals that ask a process to end.
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

    /// Waits for the next one. SIGHUP is told and changes nothing: operators send it to reload, and do not mean to cut
    /// a payment.
    pub(super) async fn next(&mut self) -> app::Signal {
        loop {
            match self.any().await {
                Asked::End(signal) => return signal,
                Asked::HangUp => {
                    tell("SIGHUP changes nothing: certificates and configuration are read at start");
                }
            }
        }
    }

    /// Waits for the next one, or for the terminal to close: a person is done with us.
    #[cfg(feature = "sandbox")]
    pub(super) async fn next_or_hangup(&mut self) -> app::Signal {
        self.any().await;
        app::Signal::Interrupt
    }

    async fn any(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End(app::Signal::Terminate),
            _ = self.interrupt.recv() => Asked::End(app::Signal::Interrupt),
            _ = self.hangup.recv() => Asked::HangUp,
        }
    }
}

enum Asked {
    End(app::Signal),
    HangUp,
}
