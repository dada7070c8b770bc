//! `sealproxy check`: everything that `run` does short of binding, one line per finding.

use std::path::Path;
use std::time::SystemTime;

use super::{Failure, control_runtime, say};
use crate::app::App;
use crate::config::{Config, Finding};
use crate::log::Log;

pub(super) fn run(file: &Path) -> Result<(), Failure> {
    let findings = match Config::load(file) {
        Ok((config, findings)) => [findings, build(config)?].concat(),
        Err(findings) => findings,
    };
    findings.iter().for_each(say);
    if findings.iter().any(Finding::is_error) {
        return Err(Failure::Checked);
    }
    say(format_args!("ok: {}", file.display()));
    Ok(())
}

fn build(config: Config) -> Result<Vec<Finding>, Failure> {
    // Nothing is served, so nothing is logged.
    let (log, writer) = Log::start(std::io::sink(), 1)?;
    let built = control_runtime()?.block_on(App::build(config, log, SystemTime::now()));
    writer.close();
    Ok(built.map_or_else(|findings| findings, |app| app.findings().to_vec()))
}
