//! A bare TCP stream to a host that is no bank, on the way that banks are reached: directly, or through the company's
//! proxy. Must not know what is said on it.

use std::error::Error as StdError;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::resolver::{Resolver, Unresolved};
use super::{AcquireError, Attempts, CredentialsError, Origin, Tunnel, Via, attempts};

/// Connects to `host`, through `via` where there is one, whose credentials are read now. Each step has `limit`: the
/// name, the connect, the tunnel. Whoever listens there must not speak first.
pub async fn passage(host: &Origin, via: Option<&Via>, limit: Duration) -> Result<TcpStream, PassageError> {
    let Some(via) = via else {
        let addresses = Resolver::new(&host.host, host.port, limit).addresses().await;
        let addresses = addresses.map_err(|error| PassageError::Unresolved(host.host.clone(), error.into()))?;
        let stream = attempts::connect(addresses, limit).await;
        return stream.map_err(|attempts| PassageError::Unreached(host.host.clone(), attempts));
    };
    let tunnel = Tunnel::new(host, via.credentials.as_deref())?;
    let unreached = |error: Box<dyn StdError + Send + Sync>| PassageError::Via(AcquireError::ViaUnreachable(error));
    let addresses = Resolver::new(&via.host, via.port, limit).addresses().await;
    let addresses = addresses.map_err(|error: Unresolved| unreached(error.into()))?;
    let mut stream = attempts::connect(addresses, limit).await.map_err(|attempts| unreached(attempts.into()))?;
    let opened = timeout(limit, tunnel.open(&mut stream)).await;
    opened.unwrap_or(Err(AcquireError::ViaTimeout(limit))).map_err(PassageError::Via)?;
    Ok(stream)
}

/// Why there is no way to a host.
#[derive(Debug, Error)]
pub enum PassageError {
    /// Its name has no address.
    #[error("no address of {0} is known")]
    Unresolved(String, #[source] Box<dyn StdError + Send + Sync>),
    /// None of its addresses answers.
    #[error("{0} cannot be reached")]
    Unreached(String, #[source] Attempts),
    /// The company's proxy.
    #[error("no way through the company's proxy")]
    Via(#[source] AcquireError),
    /// What we would tell it.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}
