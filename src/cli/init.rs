//! `sealproxy init`: print an annotated configuration.

use std::io::Write as _;

use super::Failure;

pub(super) fn run(sandbox: bool) -> Result<(), Failure> {
    let text =
        if sandbox { include_str!("../../config/becm-sandbox.yaml") } else { include_str!("../../config/becm.yaml") };
    // A reader that has seen enough is nobody's fault.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}
