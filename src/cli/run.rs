//! `sealproxy run`: serve with a configuration file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::SystemTime;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use super::signals::Signals;
use super::{Failure, LOG_LINES, control_runtime, tell};
use crate::app::{App, Bound, Ended, NO_IDENTITY, Signal, no_identity};
use crate::config::{Config, Finding, show_size};
use crate::log::Log;

/// Without the buffer that others write through: the log's writer knows what has been written.
fn stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

pub(super) fn run(file: &Path) -> Result<(), Failure> {
    keep_memory_to_ourselves();
    let (config, findings) = Config::load(file).map_err(Failure::Configuration)?;
    findings.iter().for_each(tell);
    let (log, writer) = Log::start(stdout()?, LOG_LINES)?;
    let runtime = control_runtime()?;
    let ended = runtime.block_on(serve(config, log));
    // A slow disk or a token must not hold up the end.
    runtime.shutdown_background();
    if !writer.close() {
        tell("warning: nobody reads the log, or it cannot be written: its last lines are lost");
    }
    ended
}

async fn serve(config: Config, log: Log) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let (linger, drain) = (config.linger, config.drain);
    raise_file_limit(&config);
    let (file, strict) = (config.file.clone(), config.strict);
    let built = App::build(config, log, SystemTime::now()).await;
    let app = built.map_err(|findings| not_started(&file, strict, findings))?;
    app.findings().iter().for_each(tell);
    let bound = app.bind().await.map_err(Failure::Configuration)?;
    announce(&bound);
    let mut lingered = false;
    let next = async || {
        let signal = signals.next().await;
        if signal == Signal::Terminate && !linger.is_zero() && !std::mem::replace(&mut lingered, true) {
            tell(format_args!("SIGTERM: not ready any more; serving on for {linger:?}, until a second signal at most"));
        }
        signal
    };
    match bound.serve(next).await? {
        Ended::Drained => tell(format_args!("stopped: every request in flight has finished")),
        Ended::TimedOut => tell(format_args!("stopped: requests that had not finished within {drain:?} were cut")),
        Ended::Hurried => tell(format_args!("stopped at a further signal: requests in flight were cut")),
    }
    Ok(())
}

/// Ends with what stops the start: most of what is found in an identity stops its own routes alone.
fn not_started(file: &Path, strict: bool, mut findings: Vec<Finding>) -> Failure {
    if findings.iter().all(|finding| finding.code != Some(NO_IDENTITY)) {
        findings.push(if strict {
            let reason = "`start: strict` lets nothing start while an identity or an upstream has an error";
            let hint = "mend the errors above; without `strict` it starts as soon as one identity is usable";
            Finding::error(file, "start", reason).hint(hint).code("strict-start")
        } else {
            no_identity(file, "mend the errors above: one usable identity is enough to start")
        });
    }
    Failure::Configuration(findings)
}

fn announce(bound: &Bound) {
    for (upstream, (backend, alone)) in bound.backends() {
        let why = alone.map(|why| format!(", one at a time: {why}")).unwrap_or_default();
        tell(format_args!("seals of {upstream}: {backend}{why}"));
    }
    for upstream in bound.unusable() {
        tell(format_args!(
            "warning: {upstream} cannot be used now: its routes answer 503 until what is told above is mended"
        ));
    }
    let list = |addresses: Vec<String>| if addresses.is_empty() { "off".to_owned() } else { addresses.join(", ") };
    tell(format_args!(
        "sealproxy {}: proxy {}; admin {}; threads {}; request bodies {} in all",
        env!("CARGO_PKG_VERSION"),
        list(bound.addresses().iter().map(ToString::to_string).collect()),
        list(bound.admin_addresses().iter().map(|address| format!("http://{address}")).collect()),
        bound.threads(),
        show_size(bound.limits().buffered),
    ));
}

/// Before any key is read: no core dump may hold one, and no other process of this user may read ours.
fn keep_memory_to_ourselves() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = setrlimit(Resource::Core, none);
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = limited.and(hidden) {
        tell(format_args!("warning: a core dump of this process could hold its keys: {error}"));
    }
}

/// Each connection is a file to the system, which lets most processes have 1024 of them unasked, and more once asked.
fn raise_file_limit(config: &Config) {
    let upstream: usize = config.upstreams.values().map(|upstream| upstream.settings.connections).sum();
    let needed = u64::try_from(config.limits.connections + upstream).unwrap_or(u64::MAX).saturating_add(OTHER_FILES);
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= needed) {
        return;
    }
    let wanted = now.maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum }).is_ok();
    if !raised || wanted < needed {
        tell(format_args!(
            "warning: this process may open {wanted} files, and needs {needed} at the limits of `connections`: raise its \
             limit (ulimit -n, LimitNOFILE), or lower `limits.connections`"
        ));
    }
}

/// Listeners, the admin pages' connections, reactors, certificates while they are read.
const OTHER_FILES: u64 = 128;
