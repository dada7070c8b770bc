//! `sealproxy sandbox`: the sandbox bank alone, for benches and tests.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpListener;

use super::signals::Signals;
use super::{Failure, control_runtime, say};
use crate::sandbox::bank::faults::Faults;
use crate::sandbox::bank::{Bank, Settings};
use crate::sandbox::kit::Kit;

pub(super) fn run(listen: SocketAddr, folder: &Path, demands_seal: bool, faults: Faults) -> Result<(), Failure> {
    control_runtime()?.block_on(serve(listen, folder, demands_seal, faults))
}

async fn serve(listen: SocketAddr, folder: &Path, demands_seal: bool, faults: Faults) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let kit = Kit::open_or_make(folder, SystemTime::now())?;
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let config = kit.path("sealproxy.yaml");
    if !config.exists() {
        kit.write_config(address, SocketAddr::new(address.ip(), 0), SocketAddr::new(address.ip(), 0))?;
    }
    let authorities = vec![address.to_string(), format!("localhost:{}", address.port())];
    let bank = Arc::new(Bank::new(Settings { demands_seal, faults, ..kit.bank(authorities)? })?);
    say(format_args!("bank https://{address}"));
    say(format_args!("config {}", config.display()));
    let stop = async {
        signals.next_or_hangup().await;
    };
    bank.serve(listener, stop).await;
    Ok(())
}
