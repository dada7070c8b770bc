//! Builds one generation out of the configuration and what the files hold: identities, upstreams, seals, routes, each
//! checked against the others before anything is served. What has not changed since the generation before is taken from
//! it, warm connections included. Binds nothing and changes nothing that lives longer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use rustls::pki_types::CertificateDer;

use super::Process;
use super::holding::{Holding, Place, QWAC};
use super::line::Line;
use super::marks::Marks;
use super::revocation::{Name, Watched};
use crate::config::{Config, Finding};
use crate::identity::certificate::Certificate;
use crate::identity::qcstatements::Role;
use crate::identity::{Credential, Pair, Settings};
use crate::proxy::api::Environment;
use crate::proxy::route::{self, Route, Routes};
use crate::upstream::Upstream;

/// Everything that a change of certificates or routes replaces.
pub(super) struct Generation {
    pub(super) config: Arc<Config>,
    /// Counts the configurations.
    pub(super) edition: u64,
    /// By the names of the identities.
    pub(super) holdings: BTreeMap<String, Holding>,
    /// By the names of the upstreams, those without a route included.
    pub(super) lines: BTreeMap<String, Line>,
    /// Everything that was found at the last look.
    pub(super) findings: Vec<Finding>,
    /// Whether the configuration itself has an error, beside those of its identities.
    pub(super) is_faulty: bool,
}

/// Builds and checks a generation as of `now`. `marks` is the state of its files. Reports every fault that it finds, not
/// only the first, and never fails: what cannot be used has a finding, and its routes say so.
pub(super) async fn build(
    config: &Arc<Config>,
    process: &Process,
    earlier: Option<&Generation>,
    marks: &Marks,
    now: SystemTime,
) -> Generation {
    let mut holdings = BTreeMap::new();
    let mut findings = Vec::new();
    for (name, settings) in &config.identities {
        let (file, needed, is_for_tests) = (&config.file, needed(config, name), is_for_tests(config, name));
        let place = Place { file, identity: name, is_for_tests, needed, now };
        let held = earlier.and_then(|earlier| earlier.holdings.get(name));
        let mut holding = Holding::look(&place, settings, held, marks).await;
        holding.stopped = process.revocation.stopped(name);
        findings.extend(holding.stopped.iter().map(|part| revoked(config, name, part)));
        findings.extend(holding.findings.iter().cloned());
        holdings.insert(name.clone(), holding);
    }
    let edition = match earlier {
        // Read anew and the same, it has the same routes in the same order.
        Some(earlier) if *earlier.config == **config => earlier.edition,
        Some(earlier) => earlier.edition + 1,
        None => 1,
    };
    let (config, lines) = (Arc::clone(config), BTreeMap::new());
    let mut generation = Generation { config, edition, holdings, lines, findings, is_faulty: false };
    generation.draw_lines(process, earlier, marks, now);
    generation.note_nested();
    generation
}

fn is_for_tests(config: &Config, identity: &str) -> bool {
    let mut used = config.upstreams.values().filter(|upstream| upstream.identity == identity);
    used.all(|upstream| upstream.environment == Environment::Sandbox)
}

fn revoked(config: &Config, identity: &str, part: &str) -> Finding {
    let reason = format!("the certificate of {part} has been revoked, and `revocation.stops` keeps it from being used");
    Finding::warning(&config.file, format!("identities.{identity}.revocation"), reason)
        .hint("ask the trust service provider, and install a successor")
        .code("revoked")
}

/// The roles that the routes of an identity need, as far as their paths say so.
fn needed(config: &Config, identity: &str) -> Vec<(Role, String)> {
    let routes = config.routes.iter().filter_map(|route| Some((route, config.upstreams.get(&route.upstream)?)));
    let own = routes.filter(|(_, upstream)| upstream.identity == identity);
    let roles = own.flat_map(|(route, upstream)| {
        let words = upstream.api.roles.iter().filter(|(word, _)| route.path.split('/').any(|segment| segment == *word));
        words.filter_map(|(_, role)| Some((Role::named(role)?, route.path.clone())))
    });
    roles.collect()
}

/// The files of a configuration that are watched.
pub(super) fn files(config: &Config) -> impl Iterator<Item = &Path> {
    let identities = config.identities.values().flat_map(Settings::pairs).flat_map(Pair::files);
    let lists = config.revocation.values().flat_map(|revocation| revocation.crl.iter().map(PathBuf::as_path));
    identities.chain(config.upstreams.values().flat_map(|upstream| upstream.settings.files())).chain(lists)
}

impl Generation {
    fn draw_lines(&mut self, process: &Process, earlier: Option<&Self>, marks: &Marks, now: SystemTime) {
        let config = Arc::clone(&self.config);
        for (name, upstream) in &config.upstreams {
            // A configuration's identities are legal, and each has its holding.
            let Some(holding) = self.holdings.get(&upstream.identity) else { continue };
            let seals = config.routes.iter().any(|route| route.seal && route.upstream == *name);
            let earlier =
                earlier.and_then(|earlier| Some((earlier.lines.get(name)?, earlier.config.upstreams.get(name)?)));
            let drawn = Line::draw(process, &config.file, name, upstream, seals, holding, earlier, marks, now);
            self.is_faulty |= drawn.is_faulty;
            self.findings.extend(drawn.findings);
            self.lines.insert(name.clone(), drawn.line);
        }
    }

    /// What requests see of it.
    pub(super) fn routes(&self, process: &Process) -> Routes {
        let routes = self.config.routes.iter().filter_map(|settings| self.route(process, settings)).collect();
        Routes::new(self.edition, routes, self.config.hosts.clone())
    }

    fn route(&self, process: &Process, settings: &route::Settings) -> Option<Route> {
        let (line, config) = (self.lines.get(&settings.upstream)?, self.config.upstreams.get(&settings.upstream)?);
        let host = config.settings.origin.to_string();
        Some(Route {
            settings: settings.clone(),
            origin: config.settings.origin.clone(),
            upstream: line.upstream.clone().filter(|_| line.is_usable),
            sealer: line.sealer().filter(|_| settings.seal),
            api: config.api,
            environment: config.environment,
            pass: config.pass.clone().into(),
            host: HeaderValue::try_from(host).expect("a host name is visible ASCII"),
            metrics: process.proxy_metrics.of_route(&settings.path),
        })
    }

    /// Whether an identity can be used: presented somewhere, and sealed with where its routes need it.
    pub(super) fn is_usable(&self, identity: &str, now: SystemTime) -> bool {
        let mut lines = self.config.upstreams.iter().filter(|(_, upstream)| upstream.identity == identity);
        let is_idle = lines.clone().next().is_none();
        let presents = self.holdings.get(identity).is_some_and(|holding| holding.presents(now));
        presents && (is_idle || lines.any(|(name, _)| self.lines.get(name).is_some_and(|line| line.is_usable)))
    }

    /// Whether any identity can be used.
    pub(super) fn is_any_usable(&self, now: SystemTime) -> bool {
        self.holdings.keys().any(|identity| self.is_usable(identity, now))
    }

    /// What of it depends on the time alone: which upstreams can be used, and by which seal.
    pub(super) fn has_aged(&self, now: SystemTime) -> bool {
        self.config
            .upstreams
            .iter()
            .any(|(name, upstream)| self.lines.get(name).is_some_and(|line| line.has_aged(upstream, now)))
    }

    /// The next moment at which that may change.
    pub(super) fn next_change(&self, now: SystemTime) -> Option<SystemTime> {
        const A_MOMENT: Duration = Duration::from_millis(1001);
        let validity = |certificate: &Certificate| [certificate.not_before(), certificate.not_after() + A_MOMENT];
        let known = self.lines.values().flat_map(|line| line.known.values());
        let known = known.flat_map(|known| validity(known.credential.certificate()));
        let ends = self.holdings.values().flat_map(Holding::certificates).flat_map(|(_, it)| validity(it)).chain(known);
        let begins = self.config.upstreams.values().flat_map(|upstream| &upstream.registrations);
        ends.chain(begins.filter_map(|registration| registration.from)).filter(|moment| *moment > now).min()
    }

    /// The certificates in use, where it is to be looked whether they have been revoked: of a seal the one that seals, or
    /// else the one that lies ready.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let mut watched = Vec::new();
        for (identity, holding) in &self.holdings {
            let Some(settings) = self.config.revocation.get(identity) else { continue };
            let mut watch = |part: &str, chain: &[CertificateDer<'static>]| {
                let name = Name { identity: identity.clone(), part: part.to_owned() };
                watched.push(Watched { name, chain: chain.to_vec(), settings: settings.clone() });
            };
            if let Some(qwac) = &holding.qwac {
                watch(QWAC, qwac.chain());
            }
            for (name, held) in &holding.seals {
                watch(name, self.known(identity, name).unwrap_or(held).chain());
            }
        }
        watched
    }

    /// The seal of this name that a bank knows.
    pub(super) fn known(&self, identity: &str, name: &str) -> Option<&Arc<Credential>> {
        let own = self.config.upstreams.iter().filter(|(_, upstream)| upstream.identity == identity);
        own.filter_map(|(upstream, _)| self.lines.get(upstream)?.known.get(name)).map(|known| &known.credential).next()
    }

    /// The upstreams by name.
    pub(super) fn upstreams(&self) -> BTreeMap<String, Arc<Upstream>> {
        let upstreams = self.lines.iter().filter_map(|(name, line)| Some((name.clone(), line.upstream.clone()?)));
        upstreams.collect()
    }

    /// Whether requests would notice the change from `earlier`.
    pub(super) fn differs(&self, earlier: &Self) -> bool {
        let is_same =
            |(name, line): (&String, &Line)| earlier.lines.get(name).is_some_and(|earlier| line.is_like(earlier));
        self.edition != earlier.edition || !self.lines.iter().all(is_same)
    }

    /// Ends the use of what `next` has others for. A request may ask for the successor where the configuration is the same.
    pub(super) fn retire(&self, next: &Self) {
        for (name, line) in &self.lines {
            let Some(upstream) = &line.upstream else { continue };
            let successor = next.lines.get(name).and_then(|line| line.upstream.as_ref());
            if !successor.is_some_and(|successor| Arc::ptr_eq(successor, upstream)) {
                upstream.retire(next.config.drain, self.edition == next.edition);
            }
        }
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.is_error())
    }

    fn note_nested(&mut self) {
        for (one, other) in route::nested(&self.config.routes) {
            let reason = format!(
                "{} of {} and {} of {} lie within each other: requests there must name the bank",
                one.path, one.upstream, other.path, other.upstream
            );
            let hint = "send the bank's name as Host, or the absolute form";
            self.findings.push(Finding::note(&self.config.file, "routes", reason).hint(hint));
        }
    }
}
