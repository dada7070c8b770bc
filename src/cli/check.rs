//! `sealproxy check`: everything that `run` does short of binding, one line per finding. With `--connect` also what one
//! connection to each bank shows.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Failure, connect, control_runtime, say};
use crate::app::App;
use crate::config::{Config, Finding};
use crate::log::Log;
use crate::upstream::{Report, Upstream};

pub(super) fn run(file: &Path, connect: bool) -> Result<(), Failure> {
    let (config, findings) = Config::load(file).map_err(refused)?;
    findings.iter().for_each(say);
    // Nothing is served, so nothing is logged.
    let (log, writer) = Log::start(std::io::sink(), 1)?;
    let runtime = control_runtime()?;
    let checked = runtime.block_on(check(file, config, log, connect));
    // A name that is still being looked up must not hold up the end.
    runtime.shutdown_background();
    writer.close();
    checked?;
    say(format_args!("ok: {}", file.display()));
    Ok(())
}

async fn check(file: &Path, config: Config, log: Log, connect: bool) -> Result<(), Failure> {
    let app = App::build(config, log, SystemTime::now()).await.map_err(refused)?;
    app.findings().iter().for_each(say);
    // `run` would start without these identities, and whoever checks wants to know.
    let sound = if app.findings().iter().any(Finding::is_error) { Err(Failure::Checked) } else { Ok(()) };
    if !connect {
        return sound;
    }
    // All at once, because each may wait for its deadlines; told in the order of their names.
    let upstreams = app.upstreams().into_iter();
    let probes: Vec<_> = upstreams.map(|(name, upstream)| (name, tokio::spawn(probe(upstream)))).collect();
    let mut unreached = false;
    for (name, probe) in probes {
        let findings = connect::findings(file, &name, &probe.await?, SystemTime::now());
        unreached |= findings.iter().any(Finding::is_error);
        findings.iter().for_each(say);
    }
    if unreached { sound.and(Err(Failure::Unreached)) } else { sound }
}

async fn probe(upstream: Arc<Upstream>) -> Report {
    upstream.probe(SystemTime::now).await
}

fn refused(findings: Vec<Finding>) -> Failure {
    findings.iter().for_each(say);
    Failure::Checked
}
