//! The composition root: configuration to app, app to bound listeners, served until a signal, drained. The only
//! place that knows everyone.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

mod generation;

use crate::admin;
use crate::config::{Config, Finding, Upstream};
use crate::log::Log;
use crate::proxy::listener::{Address, Departure, Hall, Listener, Phase, Reactor};
use crate::proxy::{self, Metrics, Proxy, Shared};
use crate::upstream::{self, Destination, Families, ReactorId};

/// All that `run` does short of binding: a first generation, checked.
pub struct App {
    config: Config,
    process: Process,
    shared: Arc<Shared>,
    upstreams: BTreeMap<String, Arc<upstream::Upstream>>,
    findings: Vec<Finding>,
}

/// What lives as long as the process, whatever generation serves.
struct Process {
    registry: Registry,
    proxy_metrics: Metrics,
    /// By their names in the configuration.
    destinations: BTreeMap<String, Arc<Destination>>,
    expiry: GaugeVec,
}

impl Process {
    fn new(config: &Config, log: &Log) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let expiry = GaugeVec::new(
            Opts::new("sealproxy_certificate_expiry_timestamp_seconds", "When our certificates end, in Unix time."),
            &["identity", "use"],
        )?;
        registry.register(Box::new(expiry.clone()))?;
        registry.register(Box::new(log.dropped().clone()))?;
        build_info(&registry)?;
        let families = Families::register(&registry)?;
        let destination =
            |name: &String, upstream: &Upstream| Destination::new(name, upstream.settings.clone(), &families);
        let destinations = config.upstreams.iter().map(|(name, upstream)| (name.clone(), destination(name, upstream)));
        Ok(Self {
            proxy_metrics: Metrics::register(&registry)?,
            destinations: destinations.collect(),
            expiry,
            registry,
        })
    }

    fn expiry(&self, identity: &str, part: &str, not_after: SystemTime) {
        let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.expiry.with_label_values(&[identity, part]).set(seconds);
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
    /// Reads every file that the configuration names and checks it as of `now`.
    pub async fn build(config: Config, log: Log, now: SystemTime) -> Result<Self, Vec<Finding>> {
        let process = Process::new(&config, &log).expect("each metric has a name of its own");
        let generation = generation::build(&config, &process, now).await?;
        let metrics = process.proxy_metrics.clone();
        let shared = Shared::new(generation.routes, config.limits, config.timeouts, metrics, log);
        Ok(Self { config, process, shared, upstreams: generation.upstreams, findings: generation.findings })
    }

    /// Warnings and notes.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The upstreams by name, for whoever wants to look at a bank without a route.
    pub fn upstreams(&self) -> &BTreeMap<String, Arc<upstream::Upstream>> {
        &self.upstreams
    }

    /// Binds every listener, or none. Call it within the runtime that will serve.
    pub async fn bind(self) -> Result<Bound, Vec<Finding>> {
        let file = self.config.file.clone();
        let in_use = |key: String, address: &dyn std::fmt::Display, error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another address",
                io::ErrorKind::PermissionDenied => "this user may not bind there; choose a port from 1024 up",
                io::ErrorKind::AlreadyExists => "name a path where there is nothing, or an old socket",
                io::ErrorKind::NotFound => "make the socket's folder first",
                _ => "choose an address of this machine",
            };
            vec![Finding::error(&file, key, format!("cannot listen on {address}: {error}")).hint(hint)]
        };
        let (mut listeners, mut admin) = (Vec::new(), Vec::new());
        for (index, settings) in self.config.listen.iter().enumerate() {
            let bound = Listener::bind(settings).await;
            listeners.push(bound.map_err(|error| in_use(format!("listen[{index}]"), &settings.address, error))?);
        }
        for (index, settings) in self.config.admin.iter().enumerate() {
            let bound = TcpListener::bind(settings.address).await;
            admin.push(bound.map_err(|error| in_use(format!("admin[{index}]"), &settings.address, error))?);
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

    /// Reactors that will serve.
    pub fn threads(&self) -> usize {
        self.app.config.threads
    }

    /// What is taken at most.
    pub fn limits(&self) -> proxy::Limits {
        self.app.config.limits
    }

    /// Serves until a signal comes, then leaves step by step. SIGTERM: readiness falls and each answer is the last of its
    /// connection, but whoever comes is served, for the linger time or until the next signal; those who send callers here
    /// need time to learn that we go. SIGINT skips that. Then no connection is accepted and requests in flight finish
    /// within the drain time, or until a further signal.
    pub async fn serve(self, mut signal: impl AsyncFnMut() -> Signal) -> io::Result<Ended> {
        let Self { app, listeners, admin } = self;
        let (phase, phases) = watch::channel(Phase::Serving);
        let reactors = Reactors::start(app.config.threads)?;
        let hall = Hall::new(reactors.seats(&app.shared), app.config.limits.connections, Departure::new(phases));
        let pages = Pages::start(admin, &app);
        let acceptors = listeners.into_iter().map(|listener| tokio::spawn(listener.serve(Arc::clone(&hall))));
        let acceptors: Vec<_> = acceptors.collect();
        pages.state.set_ready(true);
        let first = signal().await;
        pages.state.set_ready(false);
        if first == Signal::Terminate {
            phase.send_replace(Phase::Lingering);
            // Until its end or the next signal, whichever is first.
            let _ = timeout(app.config.linger, signal()).await;
        }
        phase.send_replace(Phase::Draining);
        for acceptor in acceptors {
            // An acceptor ends at the drain, or has panicked: either way nobody new is let in.
            let _ = acceptor.await;
        }
        let ended = tokio::select! {
            ended = drained(&hall, &app, app.config.drain - LAST_WORDS.min(app.config.drain / 4)) => ended,
            _ = signal() => Ended::Hurried,
        };
        if ended != Ended::Drained {
            app.shared.stop();
            // What was cut is answered in a moment, or by nobody.
            drained(&hall, &app, LAST_WORDS).await;
        }
        reactors.stop();
        pages.stop().await;
        Ok(ended)
    }
}

/// What asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, from whoever runs us among others: callers are still on their way here.
    Terminate,
    /// SIGINT, from somebody who waits.
    Interrupt,
}

/// The admin pages: the last to go, because they report on everything.
struct Pages {
    state: Arc<admin::State>,
    gone: Arc<Notify>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Pages {
    fn start(listeners: Vec<TcpListener>, app: &App) -> Self {
        let (state, gone) = (admin::State::new(app.process.registry.clone()), Arc::new(Notify::new()));
        let served = listeners.into_iter().zip(&app.config.admin);
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

async fn drained(hall: &Hall, app: &App, limit: Duration) -> Ended {
    let deadline = Instant::now() + limit;
    while hall.open() > 0 || app.process.proxy_metrics.in_flight.get() > 0 {
        if Instant::now() >= deadline {
            return Ended::TimedOut;
        }
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    Ended::Drained
}

/// For callers that are told at the end of the drain what is known of their requests: a part of it, so that whoever ends
/// us by force after the linger and the drain cuts nothing.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// The reactor threads: a current-thread runtime each.
struct Reactors {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: Vec<Arc<Notify>>,
}

impl Reactors {
    fn start(count: usize) -> io::Result<Self> {
        let mut reactors = Self { handles: Vec::new(), threads: Vec::new(), stop: Vec::new() };
        for index in 0..count {
            let (sender, handle) = mpsc::channel();
            let stop = Arc::new(Notify::new());
            let stopped = Arc::clone(&stop);
            let thread = std::thread::Builder::new().name(format!("reactor-{index}")).spawn(move || {
                let runtime = Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map(|runtime| (runtime.handle().clone(), runtime));
                let (handle, runtime) = match runtime {
                    Ok((handle, runtime)) => (Ok(handle), Some(runtime)),
                    Err(error) => (Err(error), None),
                };
                // The one who waits for it is gone only if starting failed.
                let _ = sender.send(handle);
                if let Some(runtime) = runtime {
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
