//! `sealproxy init`: print an annotated configuration.

use super::{Failure, say};

pub(super) fn run(sandbox: bool) -> Result<(), Failure> {
    let text =
        if sandbox { include_str!("../../config/becm-sandbox.yaml") } else { include_str!("../../config/becm.yaml") };
    say(text.trim_end_matches('\n'));
    Ok(())
}
