//! One OCSP request over HTTP (RFC 6960 appendix A.1). Judges nothing of the answer but its status and size.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::time::timeout;

use crate::identity::revocation::ResponderUrl;
use crate::upstream::{Origin, PassageError, Via, passage};

/// Posts a request to a responder and returns the body of its answer, of 64 KiB at most, within 20 seconds.
pub(super) async fn ask(url: &ResponderUrl, via: Option<&Via>, request: Vec<u8>) -> Result<Bytes, AskError> {
    timeout(LIMIT, post(url, via, request)).await.unwrap_or(Err(AskError::Late))
}

async fn post(url: &ResponderUrl, via: Option<&Via>, request: Vec<u8>) -> Result<Bytes, AskError> {
    let origin = Origin { host: url.host.clone(), port: url.port };
    let stream = passage(&origin, via, STEP).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(AskError::Http)?;
    let request = Request::post(&url.target)
        .header(HOST, &url.authority)
        .header(CONTENT_TYPE, "application/ocsp-request")
        .header(ACCEPT, "application/ocsp-response")
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(request)))
        .expect("a URL's own parts are legal");
    let answer = async {
        let response = sender.send_request(request).await.map_err(AskError::Http)?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(AskError::Body)
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The end of the connection is also the end of the answer, which says what became of it.
        _ = connection => answer.await,
    }
}

const LIMIT: Duration = Duration::from_secs(20);
/// Of the look-up, the connect and the tunnel each.
const STEP: Duration = Duration::from_secs(5);
/// A response with its certificates has a few kilobytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a responder gave no answer.
#[derive(Debug, Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Way(#[from] PassageError),
    #[error("the OCSP responder gave no answer in HTTP")]
    Http(#[source] hyper::Error),
    #[error("the OCSP responder answered with the status {0}")]
    Status(u16),
    #[error("the OCSP responder's answer was cut, or is larger than 64KiB")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the OCSP responder gave no answer within {LIMIT:?}")]
    Late,
}
