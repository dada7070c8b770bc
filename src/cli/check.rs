//! `sealproxy check`: everything that `run` does short of binding. With `--connect` also what one connection to each
//! bank shows, and what an `x5u` serves. One line per finding, or one JSON document.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::{Failure, connect, control_runtime, say, tell, x5u};
use crate::app::App;
use crate::config::{Config, Finding, Level};
use crate::log::Log;
use crate::upstream::{Report, Upstream};

pub(super) fn run(file: &Path, connect: bool, json: bool) -> Result<(), Failure> {
    let mut told = Told { file, json, findings: Vec::new(), connect: connect.then(BTreeMap::new) };
    let ended = told.check();
    if json {
        say(told.document(ended.is_ok()));
    } else if ended.is_ok() {
        say(format_args!("ok: {}", file.display()));
    }
    ended
}

/// What has been found so far. For people it is said as soon as it is known.
struct Told<'a> {
    file: &'a Path,
    json: bool,
    findings: Vec<Finding>,
    /// By upstream; `None` without `--connect`.
    connect: Option<BTreeMap<String, Vec<Finding>>>,
}

impl Told<'_> {
    fn check(&mut self) -> Result<(), Failure> {
        let (config, findings) = Config::load(self.file).map_err(|findings| self.refused(findings))?;
        self.tell(findings);
        // Nothing is served, so nothing is logged.
        let (log, writer) = Log::start(std::io::sink(), 1)?;
        let runtime = control_runtime()?;
        let checked = runtime.block_on(self.build(config, log));
        // A name that is still being looked up must not hold up the end.
        runtime.shutdown_background();
        writer.close();
        checked
    }

    async fn build(&mut self, config: Config, log: Log) -> Result<(), Failure> {
        let app = App::build(config, log, SystemTime::now()).await.map_err(|findings| self.refused(findings))?;
        // `run` would start without these identities, and whoever checks wants to know.
        let sound = !app.findings().iter().any(Finding::is_error);
        self.tell(app.findings().to_vec());
        self.tell(app.judge_revocation(SystemTime::now()).await);
        let reached = self.connect(&app).await?;
        match (sound, reached) {
            (false, _) => Err(Failure::Checked),
            (true, false) => Err(Failure::Unreached),
            (true, true) => Ok(()),
        }
    }

    /// Whether every bank was reached, if that was asked.
    async fn connect(&mut self, app: &App) -> Result<bool, Failure> {
        let Some(mut told) = self.connect.take() else { return Ok(true) };
        let upstreams = app.upstreams();
        // Whoever waits knows for what.
        for name in upstreams.keys().filter(|_| !self.json) {
            app.settings_of(name).into_iter().for_each(|settings| tell(connect::announcement(name, settings)));
        }
        // All at once, because each may wait for its deadlines; told in the order of their names.
        let upstreams = upstreams.into_iter();
        let probes: Vec<_> = upstreams.map(|(name, upstream)| (name, tokio::spawn(probe(upstream)))).collect();
        let mut reached = true;
        for (name, probe) in probes {
            let mut findings = connect::findings(self.file, &name, &probe.await?, SystemTime::now());
            reached &= !findings.iter().any(Finding::is_error);
            findings.extend(x5u::findings(self.file, &name, app).await);
            self.say(&findings);
            told.insert(name, findings);
        }
        self.connect = Some(told);
        Ok(reached)
    }

    fn refused(&mut self, findings: Vec<Finding>) -> Failure {
        self.tell(findings);
        Failure::Checked
    }

    fn tell(&mut self, findings: Vec<Finding>) {
        self.say(&findings);
        self.findings.extend(findings);
    }

    fn say(&self, findings: &[Finding]) {
        if !self.json {
            findings.iter().for_each(say);
        }
    }

    fn document(&self, ok: bool) -> String {
        let lines = |findings: &[Finding]| findings.iter().map(Line::of).collect::<Vec<_>>();
        let by_upstream = |(name, findings): (&String, &Vec<Finding>)| (name.clone(), lines(findings));
        let connect = self.connect.as_ref().map(|connect| connect.iter().map(by_upstream).collect());
        let file = self.file.display().to_string();
        let document = Document { file, ok, findings: lines(&self.findings), connect };
        serde_json::to_string_pretty(&document).expect("plain strings")
    }
}

/// The whole result.
#[derive(Serialize)]
struct Document {
    file: String,
    ok: bool,
    findings: Vec<Line>,
    /// By upstream, with `--connect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<BTreeMap<String, Vec<Line>>>,
}

/// One finding.
#[derive(Serialize)]
struct Line {
    level: &'static str,
    key: String,
    code: Option<&'static str>,
    reason: String,
    hint: Option<String>,
}

impl Line {
    fn of(finding: &Finding) -> Self {
        let Finding { level, key, code, reason, hint, .. } = finding.clone();
        let level = match level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        Self { level, key, code, reason, hint }
    }
}

async fn probe(upstream: Arc<Upstream>) -> Report {
    upstream.probe(SystemTime::now).await
}
