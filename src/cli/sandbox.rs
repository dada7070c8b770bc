//! `sealproxy sandbox`: the sandbox bank alone, for benches and tests.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpListener;

use super::signals::Signals;
use super::{Failure, control_runtime, say, tell};
use crate::causes::in_words;
use crate::sandbox::bank::faults::Faults;
use crate::sandbox::bank::{Bank, Settings};
use crate::sandbox::kit::{self, Kit};

/// Where the bank listens.
pub(super) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:40443")
}

/// Files that cannot be made or read, and what to do.
pub(super) fn without_kit(error: &kit::Error) -> Failure {
    let advice = match error {
        kit::Error::File { path, source } => {
            let reason = format!("{} cannot be made or read: {source}", path.display());
            let advice = "Name a folder with --dir, and no file, that this user may read and write; it is made where it is absent";
            return Failure::Advised(reason, advice.into());
        }
        // Says so itself.
        kit::Error::Foreign(_) => return Failure::Advised(error.to_string(), "Name it with --dir".into()),
        kit::Error::Half(_) | kit::Error::Authority(_) | kit::Error::Pem(_) | kit::Error::Certificate(_) => ANEW,
    };
    Failure::Advised(in_words(error), advice.into())
}

/// What to do where the files of a sandbox are no more what they were.
pub(super) const ANEW: &str = "Name another folder by --dir, or delete the files that were made in it (sealproxy.yaml, ca.pem, and those of bank, qwac, qsealc \
     and other-qsealc): they are then made anew";

/// The bank of a kit; `with` changes its settings.
pub(super) fn bank(
    kit: &Kit,
    address: SocketAddr,
    with: impl FnOnce(Settings) -> Settings,
) -> Result<Arc<Bank>, Failure> {
    let authorities = vec![address.to_string(), format!("localhost:{}", address.port())];
    let settings = kit.bank(authorities).map_err(|error| without_kit(&error))?;
    let bank = Bank::new(with(settings)).map(Arc::new);
    bank.map_err(|error| {
        let reason = format!("the sandbox bank cannot use its certificate and key: {}", in_words(&error));
        Failure::Advised(reason, ANEW.into())
    })
}

pub(super) fn run(listen: SocketAddr, folder: &Path, demands_seal: bool, faults: Faults) -> Result<(), Failure> {
    control_runtime()?.block_on(serve(listen, folder, demands_seal, faults))
}

/// Nobody but this machine reaches what listens there.
pub(super) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Where callers of this machine find what listens there, under a name that stands in the bank's certificate.
fn reachable(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    tell(format_args!(
        "warning: the bank listens on every address of this machine, {bound}; its certificate is for loopback alone"
    ));
    loopback(bound.port())
}

async fn serve(listen: SocketAddr, folder: &Path, demands_seal: bool, faults: Faults) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let kit = Kit::open_or_make(folder, SystemTime::now()).map_err(|error| without_kit(&error))?;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        let advice = "Name another with --listen ADDRESS; port 0 is any that is free";
        Failure::Advised(format!("the bank cannot listen on {listen}: {error}"), advice.into())
    })?;
    let address = reachable(listener.local_addr()?);
    let config = kit.path("sealproxy.yaml");
    match std::fs::read_to_string(&config) {
        Err(_) => {
            // Wherever the bank listens: what speaks plain HTTP stays on this machine.
            let any = loopback(0);
            kit.write_config(address, any, any).map_err(|error| without_kit(&error))?;
        }
        Ok(text) if !text.contains(&address.to_string()) => {
            let file = config.display();
            tell(format_args!(
                "warning: {file} is for a bank at another address than {address}. Give its `url` to --listen, or take the \
                 file away"
            ));
        }
        Ok(_) => {}
    }
    let bank = bank(&kit, address, |settings| Settings { demands_seal, faults, ..settings })?;
    say(format_args!("bank https://{address}"));
    say(format_args!("config {}", config.display()));
    let stop = async {
        signals.next_or_hangup().await;
    };
    bank.serve(listener, stop).await;
    Ok(())
}
