//! Builds one generation out of the configuration: identities, sealers, upstreams, routes, each checked against the
//! others before anything is served. Binds nothing and changes nothing that lives longer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;

use super::Process;
use crate::config::{Config, Finding, Upstream as UpstreamConfig};
use crate::identity::certificate::{Certificate, Validity};
use crate::identity::qcstatements::QcType;
use crate::identity::{self, Credential, Qwac};
use crate::proxy::route::{self, Route, Routes};
use crate::seal::{Sealer, SetupError as SealError};
use crate::upstream::{SetupError, Upstream};

/// Everything that a change of certificates or routes replaces.
pub(super) struct Generation {
    pub(super) routes: Routes,
    /// By their names in the configuration, those without a route included.
    pub(super) upstreams: BTreeMap<String, Arc<Upstream>>,
    pub(super) findings: Vec<Finding>,
}

/// Builds and checks a generation as of `now`. Reports every fault that it finds, not only the first.
pub(super) async fn build(config: &Config, process: &Process, now: SystemTime) -> Result<Generation, Vec<Finding>> {
    let mut builder = Builder { config, process, findings: Vec::new() };
    let identities = builder.identities(now).await;
    let upstreams = builder.upstreams(&identities);
    let routes = builder.routes(&upstreams);
    builder.note_nested();
    if builder.findings.iter().any(Finding::is_error) {
        return Err(builder.findings);
    }
    Ok(Generation {
        routes: Routes::new(routes, config.hosts.clone()),
        upstreams: upstreams.into_iter().map(|(name, reach)| (name, reach.upstream)).collect(),
        findings: builder.findings,
    })
}

struct Builder<'a> {
    config: &'a Config,
    process: &'a Process,
    findings: Vec<Finding>,
}

/// A bank as the routes see it.
struct Reach {
    upstream: Arc<Upstream>,
    sealer: Option<Arc<Sealer>>,
}

/// A QWAC and the seals, each with the key that fits it.
struct Identity {
    qwac: Qwac,
    seals: Vec<Credential>,
}

impl Builder<'_> {
    async fn identities(&mut self, now: SystemTime) -> BTreeMap<String, Identity> {
        let mut identities = BTreeMap::new();
        for (name, settings) in &self.config.identities {
            match load(settings).await {
                Ok(identity) => {
                    self.judge(name, settings, &identity, now);
                    identities.insert(name.clone(), identity);
                }
                Err(errors) => errors.iter().for_each(|error| {
                    let key = format!("identities.{name}.{}", error.setting);
                    self.add(Finding::error(self.file(), key, error.to_string()).hint(error.reason.hint()));
                }),
            }
        }
        identities
    }

    /// What is true of an identity whose files are sound.
    fn judge(&mut self, name: &str, settings: &identity::Settings, identity: &Identity, now: SystemTime) {
        let seals = identity.seals.iter().map(|seal| (seal.certificate(), QcType::ESeal));
        let certificates = std::iter::once((identity.qwac.certificate(), QcType::Web)).chain(seals);
        for (pair, (certificate, expected)) in settings.pairs().zip(certificates) {
            let key = format!("identities.{name}.{}.certificate", pair.setting);
            self.process.expiry(name, &pair.setting, certificate.not_after());
            self.judge_validity(&key, &pair.certificate, certificate, now);
            self.judge_type(&key, &pair.certificate, certificate, &expected);
        }
        let organisations =
            [identity.qwac.certificate(), identity.seals[0].certificate()].map(Certificate::organization_identifier);
        if let [Some(qwac), Some(qsealc)] = organisations
            && qwac != qsealc
        {
            let reason = format!("the QWAC names the organisation {qwac}, the QSealC {qsealc}");
            let hint = "both certificates must name the organisation that the bank registered";
            self.add(Finding::warning(self.file(), format!("identities.{name}"), reason).hint(hint));
        }
    }

    fn judge_validity(&mut self, key: &str, path: &Path, certificate: &Certificate, now: SystemTime) {
        let finding = match certificate.validity_at(now) {
            Validity::Expired => {
                let reason = format!("{}: the certificate expired on {}", path.display(), day(certificate.not_after()));
                Finding::error(self.file(), key, reason).hint("install its successor")
            }
            Validity::NotYet => {
                let from = day(certificate.not_before());
                let reason = format!("{}: the certificate is valid only from {from}", path.display());
                Finding::error(self.file(), key, reason).hint("wait, or check this machine's clock")
            }
            Validity::Valid if certificate.not_after() < now + EXPIRES_SOON => {
                let reason = format!("{}: the certificate expires on {}", path.display(), day(certificate.not_after()));
                Finding::warning(self.file(), key, reason).hint("order its successor now")
            }
            Validity::Valid => return,
        };
        self.add(finding);
    }

    fn judge_type(&mut self, key: &str, path: &Path, certificate: &Certificate, expected: &QcType) {
        let finding = match certificate.qc_statements() {
            Err(error) => {
                let reason =
                    format!("{}: its qualified-certificate statements cannot be read: {error}", path.display());
                Finding::warning(self.file(), key, reason).hint("give the certificate as it was issued")
            }
            Ok(Some(statements)) if statements.qc_type.as_ref().is_some_and(|found| found != expected) => {
                let found = statements.qc_type.as_ref().map_or("unknown", name_of);
                let reason =
                    format!("{}: this is a certificate for {found}, not for {}", path.display(), name_of(expected));
                Finding::warning(self.file(), key, reason).hint("are qwac and qsealc swapped?")
            }
            Ok(_) => return,
        };
        self.add(finding);
    }

    fn upstreams(&mut self, identities: &BTreeMap<String, Identity>) -> BTreeMap<String, Reach> {
        let mut upstreams = BTreeMap::new();
        for (name, config) in &self.config.upstreams {
            // An identity that is missing here has its finding already.
            let Some(identity) = identities.get(&config.identity) else { continue };
            if let Some(reach) = self.upstream(name, config, identity) {
                upstreams.insert(name.clone(), reach);
            }
        }
        upstreams
    }

    fn upstream(&mut self, name: &str, config: &UpstreamConfig, identity: &Identity) -> Option<Reach> {
        let destination = Arc::clone(self.process.destinations.get(name)?);
        let upstream = Upstream::new(destination, identity.qwac.resolver()).map_err(|error| {
            let (key, hint) = match &error {
                SetupError::Name(_) => ("url", "give the host name that stands in the bank's certificate"),
                SetupError::Trust(error) => ("trust", error.hint()),
                SetupError::Credentials(error) => ("via.credentials", error.hint()),
            };
            self.add(Finding::error(self.file(), format!("upstreams.{name}.{key}"), error.to_string()).hint(hint));
        });
        let seals = self.config.routes.iter().any(|route| route.seal && route.upstream == name);
        let sealer = if seals { self.sealer(name, config, identity)? } else { None };
        Some(Reach { upstream: Arc::new(upstream.ok()?), sealer })
    }

    /// `None`: it has become a finding.
    fn sealer(&mut self, name: &str, config: &UpstreamConfig, identity: &Identity) -> Option<Option<Arc<Sealer>>> {
        match Sealer::new(&config.profile, &identity.seals[0]) {
            Ok(sealer) => Some(Some(Arc::new(sealer))),
            Err(error) => {
                let (key, hint) = match &error {
                    SealError::NoLabel { .. } => {
                        (format!("identities.{}.qsealc.key", config.identity), "this bank takes seals of RSA keys")
                    }
                    SealError::KeyId { .. } => {
                        (format!("upstreams.{name}.key_id"), "give the key id exactly as the bank returned it")
                    }
                };
                self.add(Finding::error(self.file(), key, error.to_string()).hint(hint));
                None
            }
        }
    }

    fn routes(&self, upstreams: &BTreeMap<String, Reach>) -> Vec<Route> {
        let built = self.config.routes.iter().filter_map(|settings| {
            let (reach, config) = (upstreams.get(&settings.upstream)?, self.config.upstreams.get(&settings.upstream)?);
            Some(self.route(settings, reach, config))
        });
        built.collect()
    }

    fn route(&self, settings: &route::Settings, reach: &Reach, config: &UpstreamConfig) -> Route {
        let host = config.settings.origin.to_string();
        Route {
            settings: settings.clone(),
            upstream: Arc::clone(&reach.upstream),
            sealer: reach.sealer.clone().filter(|_| settings.seal),
            api: config.api,
            environment: config.environment,
            pass: config.pass.clone().into(),
            host: HeaderValue::try_from(host).expect("a host name is visible ASCII"),
            metrics: self.process.proxy_metrics.of_route(&settings.path),
        }
    }

    fn note_nested(&mut self) {
        for (one, other) in route::nested(&self.config.routes) {
            let reason = format!(
                "{} of {} and {} of {} lie within each other: requests there must name the bank",
                one.path, one.upstream, other.path, other.upstream
            );
            let hint = "send the bank's name as Host, or the absolute form";
            self.findings.push(Finding::note(self.file(), "routes", reason).hint(hint));
        }
    }

    fn file(&self) -> &Path {
        &self.config.file
    }

    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
}

async fn load(settings: &identity::Settings) -> Result<Identity, Vec<identity::Error>> {
    let mut errors = Vec::new();
    let qwac = Qwac::load(&settings.qwac).await.map_err(|found| errors.extend(found)).ok();
    let mut seals = Vec::new();
    for seal in &settings.seals {
        match Credential::load(&seal.pair).await {
            Ok(credential) => seals.push(credential),
            Err(found) => errors.extend(found),
        }
    }
    match qwac {
        Some(qwac) if errors.is_empty() => Ok(Identity { qwac, seals }),
        _ => Err(errors),
    }
}

/// A trust service provider needs days to weeks to issue a certificate.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// A moment in words. httpdate writes only years from 1970 to 9999, and a certificate may name others.
fn day(moment: SystemTime) -> String {
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    httpdate::fmt_http_date(moment.clamp(SystemTime::UNIX_EPOCH, last))
}

fn name_of(kind: &QcType) -> &str {
    match kind {
        QcType::Web => "website authentication (QWAC)",
        QcType::ESeal => "electronic seals (QSealC)",
        QcType::ESign => "electronic signatures of a person",
        QcType::Other(oid) => oid,
    }
}
