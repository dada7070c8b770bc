//! The composition root: configuration to app, app to bound listeners, served until a signal, drained. The only
//! place that knows everyone.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use prometheus::{IntGaugeVec, Opts, Registry};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};

mod folders;
mod generation;
mod holding;
mod line;
mod marks;
mod mounts;
mod registered;
mod reload;
pub mod revocation;
mod standing;
mod status;

use generation::Generation;
use line::Line;
use marks::Marks;
use reload::Reloader;
use revocation::{Revocation, Watched};
use standing::Standing;

use crate::admin;
use crate::config::{self, Config, Finding};
use crate::key;
use crate::log::Log;
use crate::proxy::listener::{Address, Departure, Hall, Listener, Phase, Reactor};
use crate::proxy::{self, Metrics, Proxy, Shared};
use crate::upstream::{self, Families, ReactorId};

/// All that `run` does short of binding: a first generation, checked.
pub struct App {
    process: Arc<Process>,
    shared: Arc<Shared>,
    generation: Generation,
    marks: Marks,
    log: Log,
}

/// A seal as an upstream knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSeal {
    /// Its name among the identity's seals.
    pub name: String,
    /// Its name at the bank.
    pub key_id: String,
    /// Its certificates as they were given, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
}

/// The word for machines where no identity can be used.
pub const NO_IDENTITY: &str = "no-identity";

/// Says that this is what stops a start.
pub fn no_identity(file: &Path, hint: &str) -> Finding {
    let reason = "no identity is usable, and nothing starts without one";
    Finding::error(file, "identities", reason).hint(hint).code(NO_IDENTITY)
}

/// What lives as long as the process, whatever generation serves.
struct Process {
    registry: Registry,
    proxy_metrics: Metrics,
    families: Families,
    standing: Standing,
    revocation: Revocation,
    log: Log,
}

impl Process {
    fn new(log: &Log) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(log.dropped().clone()))?;
        build_info(&registry)?;
        key::collectors().into_iter().try_for_each(|family| registry.register(family))?;
        Ok(Self {
            proxy_metrics: Metrics::register(&registry)?,
            families: Families::register(&registry)?,
            standing: Standing::register(&registry)?,
            revocation: revocation::start(&registry, log.clone())?,
            registry,
            log: log.clone(),
        })
    }
}

fn build_info(registry: &Registry) -> Result<(), prometheus::Error> {
    let labels = ["version", "rsa"];
    let info = IntGaugeVec::new(Opts::new("sealproxy_build_info", "Always 1; what was built."), &labels)?;
    let rsa = if cfg!(feature = "aws-lc") { "aws-lc" } else { "ring" };
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), rsa]).set(1);
    registry.register(Box::new(info))
}

impl App {
    /// Reads every file that the configuration names and checks it as of `now`. An identity with an error stops its own
    /// routes alone, if there is another one or its token alone is missing, unless the configuration is `strict`.
    pub async fn build(config: Config, log: Log, now: SystemTime) -> Result<Self, Vec<Finding>> {
        let process = Process::new(&log).expect("each metric has a name of its own");
        let config = Arc::new(config);
        let marks = Marks::of(generation::files(&config));
        let mut generation = generation::build(&config, &process, None, &marks, now).await;
        // What a list says by now is not to be learnt while requests are under way.
        let stops = |watched: &Watched| watched.settings.stops;
        if process.revocation.look_ahead(generation.watched().into_iter().filter(stops).collect()).await {
            generation = generation::build(&config, &process, Some(&generation), &marks, now).await;
        }
        generation.warn_of_mounts();
        if !generation.may_serve(now) || (config.strict && generation.errors().next().is_some()) {
            if generation.errors().next().is_none() {
                generation.findings.push(no_identity(&config.file, "the other findings say why"));
            }
            return Err(generation.findings);
        }
        generation.warn_of_absence(now);
        let metrics = process.proxy_metrics.clone();
        let routes = generation.routes(&process);
        let shared = Shared::new(routes, config.limits, config.timeouts, metrics, log.clone());
        Ok(Self { process: Arc::new(process), shared, generation, marks, log })
    }

    /// Everything that was found; errors of identities that cannot be used among them.
    pub fn findings(&self) -> &[Finding] {
        &self.generation.findings
    }

    /// The upstreams by name, for whoever wants to look at a bank without a route.
    pub fn upstreams(&self) -> BTreeMap<String, Arc<upstream::Upstream>> {
        self.generation.upstreams()
    }

    /// How an upstream is reached.
    pub fn settings_of(&self, upstream: &str) -> Option<&upstream::Settings> {
        self.config().upstreams.get(upstream).map(|config| &config.settings)
    }

    /// The seals that an upstream knows.
    pub fn seals_of(&self, upstream: &str) -> Vec<KnownSeal> {
        self.generation.lines.get(upstream).map(Line::seals).unwrap_or_default()
    }

    /// What is wrong with the sources that tell of revocations of our own certificates, without asking a responder. A
    /// proxy that runs says it in its log, as it looks.
    pub async fn judge_revocation(&self, now: SystemTime) -> Vec<Finding> {
        let (config, watched) = (Arc::clone(&self.generation.config), self.generation.watched());
        // Lists are large, and files may be slow.
        let judging = tokio::task::spawn_blocking(move || {
            let judge = |(identity, settings): (&String, &config::Revocation)| {
                let own: Vec<_> = watched.iter().filter(|of| of.name.identity == *identity).cloned().collect();
                revocation::judge(&config.file, identity, settings, &own, now)
            };
            config.revocation.iter().flat_map(judge).collect()
        });
        judging.await.expect("reading lists does not panic")
    }

    fn config(&self) -> &Config {
        &self.generation.config
    }

    /// Binds every listener, or none. Call it within the runtime that will serve.
    pub async fn bind(self) -> Result<Bound, Vec<Finding>> {
        let file = self.config().file.clone();
        let in_use = |key: String, address: &dyn std::fmt::Display, is_socket: bool, error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied if is_socket => {
                    "let this user write in the socket's folder, and to a socket that is there"
                }
                io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another address",
                io::ErrorKind::PermissionDenied => "this user may not bind there; choose a port from 1024 up",
                io::ErrorKind::AlreadyExists => "name a path where there is nothing, or an old socket",
                io::ErrorKind::NotFound => "make the socket's folder first",
                _ => "choose an address of this machine",
            };
            let reason = format!("cannot listen on {address}: {error}");
            vec![Finding::error(&file, key, reason).hint(hint).code("cannot-listen")]
        };
        let (mut listeners, mut admin) = (Vec::new(), Vec::new());
        for (index, settings) in self.config().listen.iter().enumerate() {
            let bound = Listener::bind(settings).await;
            let is_socket = matches!(settings.address, Address::Unix(_));
            let in_use = |error| in_use(format!("listen[{index}]"), &settings.address, is_socket, error);
            listeners.push(bound.map_err(in_use)?);
        }
        for (index, settings) in self.config().admin.iter().enumerate() {
            let bound = TcpListener::bind(settings.address).await;
            admin.push(bound.map_err(|error| in_use(format!("admin[{index}]"), &settings.address, false, error))?);
        }
        Ok(Bound { app: self, listeners, admin })
    }
}

/// An app whose listeners are bound.
pub struct Bound {
    app: App,
    listeners: Vec<Listener>,
    admin: Vec<TcpListener>,
}

impl Bound {
    /// Where local clients reach the proxy.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().map(|listener| listener.address().clone()).collect()
    }

    /// Where the admin pages are.
    pub fn admin_addresses(&self) -> Vec<std::net::SocketAddr> {
        self.admin.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// For each upstream the library that seals, and why it makes one seal at a time if it does.
    pub fn backends(&self) -> BTreeMap<String, (&'static str, Option<&'static str>)> {
        self.app.generation.backends()
    }

    /// The upstreams whose routes answer 503 for now.
    pub fn unusable(&self) -> Vec<&str> {
        self.app.generation.unusable()
    }

    /// Reactors that will serve.
    pub fn threads(&self) -> usize {
        self.app.config().threads
    }

    /// What is taken at most.
    pub fn limits(&self) -> proxy::Limits {
        self.app.config().limits
    }

    /// Serves until a signal comes, then leaves step by step. SIGTERM: readiness falls and each answer is the last of
    /// its connection, but whoever comes is served, for the linger time or until the next signal; those who send
    /// callers here need time to learn that we go. SIGINT skips that. Then no connection is accepted and requests in
    /// flight finish within the drain time, or until a further signal. SIGHUP reads the configuration anew, and means
    /// nothing to a process that is about to end.
    pub async fn serve(self, mut signal: impl AsyncFnMut() -> Signal) -> io::Result<Ended> {
        let Self { app, listeners, admin } = self;
        let App { process, shared, generation, marks, log } = app;
        let config = Arc::clone(&generation.config);
        let (phase, phases) = watch::channel(Phase::Serving);
        let reactors = Reactors::start(config.threads, &log)?;
        let hall = Hall::new(reactors.seats(&shared), config.limits.connections, Departure::new(phases));
        let pages = Pages::start(admin, &config, process.registry.clone());
        let (reload, asked) = mpsc::channel(1);
        let pages_state = Arc::clone(&pages.state);
        let reloader = Reloader::new(Arc::clone(&process), Arc::clone(&shared), pages_state, log, generation, marks);
        let reloader = tokio::spawn(reloader.run(asked));
        let acceptors = listeners.into_iter().map(|listener| tokio::spawn(listener.serve(Arc::clone(&hall))));
        let acceptors: Vec<_> = acceptors.collect();
        pages.state.set_serving(true);
        let mut first = signal().await;
        while first == Signal::Reload {
            // One that waits already will see the same files.
            let _ = reload.try_send(());
            first = signal().await;
        }
        pages.state.set_serving(false);
        let mut further = async || while signal().await == Signal::Reload {};
        if first == Signal::Terminate {
            phase.send_replace(Phase::Lingering);
            // Until its end or the next signal, whichever is first.
            let _ = timeout(config.linger, further()).await;
        }
        phase.send_replace(Phase::Draining);
        for acceptor in acceptors {
            // An acceptor ends at the drain, or has panicked: either way nobody new is let in.
            let _ = acceptor.await;
        }
        let metrics = &process.proxy_metrics;
        let ended = tokio::select! {
            // Where nothing is left to wait for, a signal hurries nobody.
            biased;
            ended = drained(&hall, metrics, config.drain - LAST_WORDS.min(config.drain / 4)) => ended,
            () = further() => Ended::Hurried,
        };
        if ended != Ended::Drained {
            shared.stop();
            // What was cut is answered in a moment, or by nobody.
            drained(&hall, metrics, LAST_WORDS).await;
        }
        reloader.abort();
        reactors.stop();
        pages.stop().await;
        Ok(ended)
    }
}

/// What asks the process to end, or to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, from whoever runs us among others: callers are still on their way here.
    Terminate,
    /// SIGINT, from somebody who waits.
    Interrupt,
    /// SIGHUP, from whoever has changed the configuration.
    Reload,
}

/// The admin pages: the last to go, because they report on everything.
struct Pages {
    state: Arc<admin::State>,
    gone: Arc<Notify>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Pages {
    fn start(listeners: Vec<TcpListener>, config: &Config, registry: Registry) -> Self {
        let (state, gone) = (admin::State::new(registry), Arc::new(Notify::new()));
        let served = listeners.into_iter().zip(&config.admin);
        let tasks = served.map(|(listener, settings)| {
            let (state, gone) = (Arc::clone(&state), Arc::clone(&gone));
            let stop = async move { gone.notified().await };
            tokio::spawn(admin::serve(listener, settings.serve.clone(), state, stop))
        });
        Self { tasks: tasks.collect(), state, gone }
    }

    async fn stop(self) {
        self.gone.notify_waiters();
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request in flight finished.
    Drained,
    /// Some did not within the drain time, and were cut.
    TimedOut,
    /// A further signal cut the drain short.
    Hurried,
}

async fn drained(hall: &Hall, metrics: &Metrics, limit: Duration) -> Ended {
    let deadline = Instant::now() + limit;
    while hall.open() > 0 || metrics.in_flight.get() > 0 {
        if Instant::now() >= deadline {
            return Ended::TimedOut;
        }
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    Ended::Drained
}

/// For callers that are told at the end of the drain what is known of their requests: a part of it, so that whoever
/// ends us by force after the linger and the drain cuts nothing.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// Wakes the log's writer at the end of a thread that wakes it when it is idle.
struct LastLines(Log);

impl Drop for LastLines {
    fn drop(&mut self) {
        self.0.idle();
    }
}

/// The reactor threads: a current-thread runtime each.
struct Reactors {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: Vec<Arc<Notify>>,
}

impl Reactors {
    fn start(count: usize, log: &Log) -> io::Result<Self> {
        let mut reactors = Self { handles: Vec::new(), threads: Vec::new(), stop: Vec::new() };
        for index in 0..count {
            let (sender, handle) = std::sync::mpsc::channel();
            let stop = Arc::new(Notify::new());
            let stopped = Arc::clone(&stop);
            let log = log.clone();
            let thread = std::thread::Builder::new().name(format!("reactor-{index}")).spawn(move || {
                Log::wake_when_idle();
                // Behind whatever the end of the runtime logs.
                let _last = LastLines(log.clone());
                let runtime = Builder::new_current_thread().enable_all().on_thread_park(move || log.idle()).build();
                let runtime = runtime.map(|runtime| (runtime.handle().clone(), runtime));
                let (handle, runtime) = match runtime {
                    Ok((handle, runtime)) => (Ok(handle), Some(runtime)),
                    Err(error) => (Err(error), None),
                };
                // The one who waits for it is gone only if starting failed.
                let _ = sender.send(handle);
                if let Some(runtime) = runtime {
                    key::gather_here();
                    runtime.block_on(stopped.notified());
                    // A name that is being looked up must not hold up the end.
                    runtime.shutdown_background();
                }
            })?;
            let handle = handle.recv().map_err(|_| io::Error::other("a reactor thread ended at its start"))??;
            reactors.handles.push(handle);
            reactors.threads.push(thread);
            reactors.stop.push(stop);
        }
        Ok(reactors)
    }

    fn seats(&self, shared: &Arc<Shared>) -> Vec<Reactor> {
        let numbered = self.handles.iter().enumerate();
        numbered
            .map(|(index, handle)| Reactor::new(handle.clone(), Proxy::new(Arc::clone(shared), ReactorId(index))))
            .collect()
    }

    fn stop(self) {
        self.stop.iter().for_each(|stop| stop.notify_one());
        for thread in self.threads {
            // A reactor's panic was printed when it happened.
            let _ = thread.join();
        }
    }
}
