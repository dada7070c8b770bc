//! Builds one generation out of the configuration and what the files hold: identities, upstreams, seals, routes, each
//! checked against the others before anything is served. What has not changed since the generation before is taken from
//! it, warm connections included. Binds nothing and changes nothing that lives longer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use http::HeaderValue;
use rustls::pki_types::CertificateDer;

use super::Process;
use super::holding::{Holding, Place, QWAC};
use super::line::{Line, Plan};
use super::marks::Marks;
use super::registered::Pins;
use super::revocation::{Name, Watched};
use crate::config::{Config, Finding, Level};
use crate::identity::certificate::{Certificate, Fingerprint};
use crate::identity::preflight::Need;
use crate::identity::qcstatements::Role;
use crate::identity::{Pair, Settings, TOKEN_ABSENT};
use crate::proxy::api::{self, Environment, Reserved};
use crate::proxy::route::{self, Route, Routes, Sealing};
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
    /// What the banks were said to know and were shown, until now.
    pins: Pins,
    /// Everything that was found at the last look.
    pub(super) findings: Vec<Finding>,
    /// Whether the configuration itself has an error, beside those of its identities.
    pub(super) is_faulty: bool,
}

/// Builds and checks a generation as of `now`. `marks` is the state of its files. Reports every fault that it finds,
/// not only the first, and never fails: what cannot be used has a finding, and its routes say so.
pub(super) async fn build(
    config: &Arc<Config>,
    process: &Process,
    earlier: Option<&Generation>,
    marks: &Marks,
    now: SystemTime,
) -> Generation {
    // All at a time: a token that hangs holds the others up no longer than once.
    let looks = config.identities.iter().map(async |(name, settings)| {
        let (file, needed, is_for_tests) = (&config.file, needed(config, name), is_for_tests(config, name));
        let (known, due) = (registered(config, name, |_| true), registered(config, name, |from| from <= now));
        let used = earlier.map_or_else(|| due.clone(), |earlier| earlier.sealing(name));
        let early = if due.is_empty() { BTreeSet::new() } else { &known - &due };
        let stopped = stopped(config, process, name);
        let place = Place { file, identity: name, is_for_tests, needed, registered: known, early, used, stopped, now };
        let held = earlier.and_then(|earlier| earlier.holdings.get(name));
        (name.clone(), Holding::look(&place, settings, held, marks).await)
    });
    let holdings: BTreeMap<_, _> = join_all(looks).await.into_iter().collect();
    let findings = holdings.values().flat_map(|holding| &holding.findings).cloned().collect();
    let edition = match earlier {
        // Read anew and the same, it has the same routes in the same order.
        Some(earlier) if *earlier.config == **config => earlier.edition,
        Some(earlier) => earlier.edition + 1,
        None => 1,
    };
    let (config, lines) = (Arc::clone(config), BTreeMap::new());
    let pins = earlier.map(|earlier| earlier.pins.clone()).unwrap_or_default();
    let mut generation = Generation { config, edition, holdings, lines, pins, findings, is_faulty: false };
    generation.draw_lines(process, earlier, marks, now);
    generation.note_revoked();
    generation.note_nested();
    generation
}

fn revocation_of(identity: &str) -> String {
    format!("identities.{identity}.revocation")
}

fn is_for_tests(config: &Config, identity: &str) -> bool {
    let mut used = config.upstreams.values().filter(|upstream| upstream.identity == identity);
    used.all(|upstream| upstream.environment == Environment::Sandbox)
}

/// The seals of an identity that some bank knows, since or from a moment that `is_meant`.
fn registered<'a>(config: &'a Config, identity: &str, is_meant: impl Fn(SystemTime) -> bool) -> BTreeSet<&'a str> {
    let own = config.upstreams.values().filter(|upstream| upstream.identity == identity);
    let registrations = own.flat_map(|upstream| &upstream.registrations);
    let meant = registrations.filter(|registration| registration.from.is_some_and(&is_meant));
    meant.map(|known| known.seal.as_str()).collect()
}

/// The certificates of an identity that are not to be used any more.
pub(super) fn stopped(config: &Config, process: &Process, identity: &str) -> BTreeSet<Fingerprint> {
    let stops = config.revocation.get(identity).is_some_and(|revocation| revocation.stops);
    if stops { process.revocation.revoked(identity) } else { BTreeSet::new() }
}

/// The roles that the routes of an identity need.
fn needed(config: &Config, identity: &str) -> Vec<Need> {
    let routes = config.routes.iter().filter_map(|route| Some((route, config.upstreams.get(&route.upstream)?)));
    let own = routes.filter(|(_, upstream)| upstream.identity == identity);
    let needed = own.flat_map(|(route, upstream)| {
        let reserved = upstream.api.reserved(&route.path, &route.methods);
        reserved.filter_map(|reserved| need(config, &route.path, reserved))
    });
    needed.collect()
}

/// `None` where the route's path does not name what is reserved and another route does, which takes it away.
fn need(config: &Config, path: &str, reserved: &Reserved) -> Option<Need> {
    let is_named = api::names(path, reserved.word);
    let mut others = config.routes.iter().map(|route| route.path.as_str());
    if !is_named && others.any(|other| other.starts_with(path) && api::names(other, reserved.word)) {
        return None;
    }
    let what = if is_named { path.to_owned() } else { format!("{} through {path}", reserved.word) };
    Some(Need { role: Role::named(reserved.role)?, what, is_named })
}

/// The files of a configuration that are watched.
pub(super) fn files(config: &Config) -> impl Iterator<Item = &Path> {
    let identities = config.identities.values().flat_map(Settings::pairs).flat_map(Pair::files);
    identities.chain(config.upstreams.values().flat_map(|upstream| upstream.settings.files())).chain(lists(config))
}

/// Those of them that tell of our own certificates.
pub(super) fn lists(config: &Config) -> impl Iterator<Item = &Path> {
    config.revocation.values().flat_map(|revocation| revocation.crl.iter().map(PathBuf::as_path))
}

/// For each upstream the library that seals, and why it makes one seal at a time if it does.
pub(super) type Backends = BTreeMap<String, (&'static str, Option<&'static str>)>;

impl Generation {
    fn draw_lines(&mut self, process: &Process, earlier: Option<&Self>, marks: &Marks, now: SystemTime) {
        let config = Arc::clone(&self.config);
        let pins = std::mem::take(&mut self.pins).under(&config.upstreams);
        for (name, upstream) in &config.upstreams {
            // A configuration's identities are legal, and each has its holding.
            let Some(holding) = self.holdings.get(&upstream.identity) else { continue };
            let seals = config.routes.iter().any(|route| route.seal && route.upstream == *name);
            let line = earlier.and_then(|earlier| earlier.lines.get(name));
            let (file, pins, config) = (&*config.file, &pins, upstream);
            let plan = Plan { file, name, config, seals, holding, pins, marks, now };
            let drawn = Line::draw(process, plan, line);
            self.is_faulty |= drawn.is_faulty;
            self.findings.extend(drawn.line.findings.iter().cloned());
            self.lines.insert(name.clone(), drawn.line);
        }
        self.pins = pins.with(self.lines.iter());
    }

    /// The seals of an identity that seal somewhere now.
    fn sealing(&self, identity: &str) -> BTreeSet<&str> {
        let own = self.config.upstreams.iter().filter(|(_, upstream)| upstream.identity == identity);
        own.filter_map(|(name, _)| self.lines.get(name)?.active.as_deref()).collect()
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
            sealing: Sealing::new(settings.seal, line.sealer()),
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

    /// Whether it is worth serving: any identity can be used, or could but for a token that does not answer now. A
    /// token that is down takes nobody out of service: all replicas have the same, and it comes back to those alone
    /// that are there.
    pub(super) fn may_serve(&self, now: SystemTime) -> bool {
        self.is_any_usable(now) || self.holdings.values().any(Holding::awaits_token)
    }

    /// Says so where nothing can be used yet of what is to be served.
    pub(super) fn warn_of_absence(&mut self, now: SystemTime) {
        if self.is_any_usable(now) {
            return;
        }
        let reason = "no identity can be used before its token answers";
        let hint = "it is asked again every 15 seconds; until then the routes answer 503 `identity-unusable`";
        self.findings.push(Finding::warning(&self.config.file, "identities", reason).hint(hint).code(TOKEN_ABSENT));
    }

    /// What of it depends on the time alone: which upstreams can be used, by which certificate and which seal.
    pub(super) fn has_aged(&self, now: SystemTime) -> bool {
        let mut lines = self.config.upstreams.iter().filter_map(|(name, config)| Some((self.lines.get(name)?, config)));
        lines.any(|(line, config)| line.has_aged(config, now))
            || self.holdings.values().any(|holding| holding.has_aged(now))
    }

    /// The next moment at which that may change.
    pub(super) fn next_change(&self, now: SystemTime) -> Option<SystemTime> {
        const A_MOMENT: Duration = Duration::from_millis(1001);
        let validity = |certificate: &Certificate| [certificate.not_before(), certificate.not_after() + A_MOMENT];
        let known = self.lines.values().flat_map(|line| line.known.values());
        let known = known.flat_map(|known| validity(known.credential.certificate()));
        let held = self.holdings.values().flat_map(Holding::certificates).flat_map(validity);
        let due = self.holdings.values().filter_map(Holding::due);
        let begins = self.config.upstreams.values().flat_map(|upstream| &upstream.registrations);
        let begins = begins.filter_map(|registration| registration.from);
        known.chain(held).chain(due).chain(begins).filter(|moment| *moment > now).min()
    }

    /// The certificates in use, where it is to be looked whether they have been revoked.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let mut watched = Vec::new();
        for (identity, settings) in &self.config.revocation {
            for (part, _, chain) in self.in_use(identity) {
                let name = Name { identity: identity.clone(), part: part.to_owned() };
                watched.push(Watched { name, chain: chain.to_vec(), settings: settings.clone() });
            }
        }
        watched
    }

    /// An identity's certificates under their names in metrics, with their chains: what the banks know and, of seals
    /// that none knows, what lies ready. Banks may know different ones by the same name.
    pub(super) fn in_use(&self, identity: &str) -> Vec<(&str, &Certificate, &[CertificateDer<'static>])> {
        let own = self.config.upstreams.iter().filter(|(_, upstream)| upstream.identity == identity);
        let lines: Vec<&Line> = own.filter_map(|(upstream, _)| self.lines.get(upstream)).collect();
        let holding = self.holdings.get(identity);
        let qwacs = lines.iter().filter_map(|line| line.qwac.as_ref());
        let qwacs = qwacs.chain(holding.and_then(|holding| holding.qwac.as_ref()));
        let mut found: Vec<_> = qwacs.map(|qwac| (QWAC, qwac.certificate(), qwac.chain())).collect();
        let known = lines.iter().flat_map(|line| &line.known);
        let known =
            known.map(|(name, known)| (name.as_str(), known.credential.certificate(), known.credential.chain()));
        found.extend(known);
        for (name, held) in holding.into_iter().flat_map(|holding| &holding.seals) {
            if !found.iter().any(|(known, ..)| known == name) {
                found.push((name, held.certificate(), held.chain()));
            }
        }
        found.sort_by_key(|(name, certificate, _)| (*name, certificate.id()));
        found.dedup_by_key(|(name, certificate, _)| (*name, certificate.id()));
        found
    }

    fn note_revoked(&mut self) {
        let mut found = Vec::new();
        for (identity, holding) in &self.holdings {
            let own = self.in_use(identity).into_iter();
            for (part, ..) in own.filter(|(_, certificate, _)| holding.stopped.contains(&certificate.id())) {
                let reason = format!(
                    "the certificate of {part} has been revoked, and `revocation.stops` keeps it from being used"
                );
                let key = revocation_of(identity);
                let hint = "ask the trust service provider, and install a successor";
                found.push(Finding::warning(&self.config.file, key, reason).hint(hint).code("revoked"));
            }
        }
        self.findings.extend(found);
    }

    /// What was found of an identity's certificates that are not used because they have been revoked.
    pub(super) fn revoked(&self, identity: &str) -> impl Iterator<Item = &Finding> {
        let key = revocation_of(identity);
        self.findings.iter().filter(move |finding| finding.code == Some("revoked") && finding.key == key)
    }

    /// By what the seals of each upstream are made.
    pub(super) fn backends(&self) -> Backends {
        self.lines.iter().filter_map(|(name, line)| Some((name.clone(), line.backend()?))).collect()
    }

    /// The upstreams by name.
    pub(super) fn upstreams(&self) -> BTreeMap<String, Arc<Upstream>> {
        let upstreams = self.lines.iter().filter_map(|(name, line)| Some((name.clone(), line.upstream.clone()?)));
        upstreams.collect()
    }

    /// The upstreams whose routes answer that they cannot be used.
    pub(super) fn unusable(&self) -> Vec<&str> {
        let has_routes = |name: &str| self.config.routes.iter().any(|route| route.upstream == name);
        let unusable = self.lines.iter().filter(|(name, line)| !line.is_usable && has_routes(name));
        unusable.map(|(name, _)| name.as_str()).collect()
    }

    /// Whether requests would notice the change from `earlier`.
    pub(super) fn differs(&self, earlier: &Self) -> bool {
        let is_same =
            |(name, line): (&String, &Line)| earlier.lines.get(name).is_some_and(|earlier| line.is_like(earlier));
        self.edition != earlier.edition || !self.lines.iter().all(is_same)
    }

    /// Puts its limits in force, and shows when the banks' revocation lists become too old.
    pub(super) fn takes_over(&self) {
        self.lines.values().for_each(Line::takes_over);
    }

    /// The seals that lie ready.
    pub(super) fn staged(&self) -> BTreeSet<(&str, Fingerprint)> {
        let lines = self.lines.iter();
        let staged =
            lines.flat_map(|(upstream, line)| line.staged.iter().map(move |staged| (upstream.as_str(), staged)));
        staged.map(|(upstream, staged)| (upstream, staged.credential.certificate().id())).collect()
    }

    /// Ends the use of what `next` has others for. A request may ask for the successor where the configuration is the
    /// same.
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

    pub(super) fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.level == Level::Warning)
    }

    /// Whether something is wrong now with what is not in use.
    pub(super) fn has_new_trouble(&self, earlier: &Self) -> bool {
        self.warnings().any(|warning| warning.is_lowered && !earlier.findings.contains(warning))
    }

    /// Whether there are fewer warnings, none of them new, and what the others were about can be used.
    pub(super) fn is_sounder(&self, earlier: &Self) -> bool {
        let about = |warning: &Finding| warning.key.rsplit_once('.').map(|(about, _)| about.to_owned());
        let left: Vec<&Finding> = self.warnings().collect();
        let mut gone = earlier.warnings().filter(|warning| !left.contains(warning));
        left.iter().all(|warning| earlier.findings.contains(warning))
            && gone.all(|gone| !left.iter().any(|left| left.is_lowered && about(left) == about(gone)))
    }

    fn note_nested(&mut self) {
        // With their upstreams: many banks may have the same path.
        let mut nested: BTreeMap<BTreeSet<&str>, BTreeSet<&str>> = BTreeMap::new();
        for (one, other) in route::nested(&self.config.routes) {
            let upstreams = nested.entry([&*one.path, &*other.path].into()).or_default();
            upstreams.extend([&*one.upstream, &*other.upstream]);
        }
        for (paths, upstreams) in nested {
            let listed = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
            let what = if paths.len() == 1 { "is a route of several upstreams" } else { "lie within each other" };
            let reason = format!("{} {what} ({}): requests there must name the bank", listed(paths), listed(upstreams));
            let hint = "send the bank's name as Host, or the absolute form";
            self.findings.push(Finding::note(&self.config.file, "routes", reason).hint(hint).code("nested-routes"));
        }
    }
}
