//! `sealproxy init`: print an annotated configuration.

use clap::CommandFactory as _;
use clap::error::ErrorKind;

use super::{Arguments, Failure, Sample, say};

pub(super) fn run(sample: Sample, sandbox: bool) -> Result<(), Failure> {
    let text = match (sample, sandbox) {
        (Sample::Becm, false) => include_str!("../../config/becm.yaml"),
        (Sample::Becm, true) => include_str!("../../config/becm-sandbox.yaml"),
        (Sample::Reference, false) => include_str!("../../config/sealproxy.yaml"),
        (Sample::Reference, true) => {
            let reason = "--sandbox goes with a bank: the reference has the settings of every environment";
            return Err(Failure::Usage(Arguments::command().error(ErrorKind::ArgumentConflict, reason)));
        }
    };
    say(text.trim_end_matches('\n'));
    Ok(())
}
