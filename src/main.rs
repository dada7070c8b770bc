//! Parse, run, print the error chain, exit code; nothing else.

use std::process::ExitCode;

use sealproxy::{cli, key};

fn main() -> ExitCode {
    let code = match cli::parse().and_then(cli::Command::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    key::leave_tokens();
    code
}
