//! Whether a key id that is a URL (`x5u`, RFC 7517 section 4.6) serves the certificate that seals, with the chain
//! behind it: the bank fetches it from there, and refuses every seal once it finds another one or no path.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Limited};
use prometheus::Registry;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::time::timeout;

use crate::app::{App, KnownSeal};
use crate::causes::in_words;
use crate::config::Finding;
use crate::identity::{pem, preflight};
use crate::log::Log;
use crate::upstream::{AcquireError, Destination, Families, Origin, Payload, ReactorId, Settings, Trust, Upstream};

/// One finding for each `x5u` of an upstream.
pub(super) async fn findings(file: &Path, upstream: &str, app: &App) -> Vec<Finding> {
    let mut findings = Vec::new();
    for seal in app.seals_of(upstream).into_iter().filter(|seal| seal.key_id.starts_with("https://")) {
        let key = format!("upstreams.{upstream}.key_id");
        let url = &seal.key_id;
        findings.push(match served(app, upstream, &seal).await {
            Ok(Served { has_key: true, .. }) => {
                let reason = format!("{url} serves a private key: whoever reads it can seal in the name of this one");
                Finding::error(file, key, reason)
                    .hint("take it away, and if it is that of the seal have the certificate revoked: the key is known")
                    .code("x5u-serves-key")
            }
            Ok(Served { chain, .. }) if chain.first() != seal.chain.first() => {
                let reason = format!("{url} serves another certificate than that of the seal {}", seal.name);
                Finding::warning(file, key, reason)
                    .hint("put the present chain there, leaf first: the bank verifies seals with what it finds")
                    .code("x5u-serves-another")
            }
            Ok(Served { chain, .. }) => match preflight::missing_of_chain(&seal.chain, &chain) {
                missing if missing.is_empty() => {
                    let reason = format!("{url} serves the certificate of the seal {}", seal.name);
                    Finding::note(file, key, reason).code("x5u")
                }
                missing => {
                    let (name, missing) = (&seal.name, missing.join("; "));
                    let reason =
                        format!("{url} serves the certificate of the seal {name} without what issued it: {missing}");
                    Finding::warning(file, key, reason)
                        .hint("put the whole chain there; the root may stay away")
                        .code("x5u-incomplete")
                }
            },
            Err(reason) => Finding::warning(file, key, format!("{url} could not be read: {reason}"))
                .hint("the bank must be able to fetch the chain from there; its certificate is looked at as any client of this \
                       machine does, with the system's roots (`SSL_CERT_FILE` names others), whatever `trust` says")
                .code("x5u-unreachable"),
        });
    }
    findings
}

/// What is there.
struct Served {
    chain: Vec<CertificateDer<'static>>,
    has_key: bool,
}

async fn served(app: &App, upstream: &str, seal: &KnownSeal) -> Result<Served, String> {
    let url: Uri = seal.key_id.parse().map_err(|_| "it is not a URL".to_owned())?;
    let host = host(app, upstream, &url)?;
    let text = timeout(LIMIT, fetch(&host, &url)).await.map_err(|_| format!("no answer within {LIMIT:?}"))??;
    let chain = pem::chain(&text).map_err(|reason| reason.to_string())?;
    // Several, and encrypted ones, are keys too.
    let has_key = !matches!(pem::key(&text), Err(pem::Reason::NoKey | pem::Reason::CertificateForKey));
    Ok(Served { chain, has_key })
}

/// The URL's host, reached as the bank is, but without the QWAC and trusted as this machine trusts.
fn host(app: &App, upstream: &str, url: &Uri) -> Result<Upstream, String> {
    let settings = app.settings_of(upstream).ok_or("there is no such upstream")?;
    let host = url.host().ok_or("it has no host")?.trim_matches(['[', ']']).to_ascii_lowercase();
    let origin = Origin { host, port: url.port_u16().unwrap_or(443) };
    let settings = Settings { origin, trust: Trust::default(), ..settings.clone() };
    let families = Families::register(&Registry::new()).map_err(|error| error.to_string())?;
    // Of this host's clock nobody wants to hear.
    let (log, _) = Log::start(std::io::sink(), 1).map_err(|error| error.to_string())?;
    let destination = Destination::new("x5u", settings, &families, log);
    Upstream::new(destination, Arc::new(NoCertificate), None, SystemTime::now()).map_err(|error| in_words(&error))
}

/// Who fetches a chain need not say who it is.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

async fn fetch(host: &Upstream, url: &Uri) -> Result<Vec<u8>, String> {
    // An empty path is `/` here, and not in `path_and_query`.
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let request = Request::get(format!("{}{query}", url.path()))
        .header(HOST, host.origin().to_string())
        .header(USER_AGENT, concat!("sealproxy/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Payload::default())
        .map_err(|error| error.to_string())?;
    let lease = host.acquire(ReactorId(0)).await.map_err(|error| match error {
        // The setting `trust`, which the error's own words speak of, is for the bank.
        AcquireError::Untrusted(error) => format!("its certificate is not trusted: {}", in_words(&error)),
        error => in_words(&error),
    })?;
    let response = lease.send(request).await.map_err(|error| in_words(&error.cause))?;
    if !response.status().is_success() {
        return Err(format!("the answer is {}", response.status()));
    }
    let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|error| error.to_string())?;
    Ok(body.to_bytes().to_vec())
}

/// More than any chain.
const MOST: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(30);
