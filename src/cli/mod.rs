//! The command line: one file per command, which parses nothing and decides nothing that the library could decide.
//! stdout is data, stderr is for people.

use std::error::Error;
use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::builder::{PathBufValueParser, TypedValueParser as _};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};

mod check;
mod connect;
#[cfg(feature = "sandbox")]
mod dev;
mod health;
mod init;
mod run;
#[cfg(feature = "sandbox")]
mod sandbox;
mod signals;
mod x5u;

use crate::causes::in_words;
use crate::config::Finding;
#[cfg(feature = "sandbox")]
use crate::sandbox::bank::faults::{Faults, Mishap};
use health::Admin;

/// A mutual-TLS signing forward proxy for open-banking APIs.
#[derive(Debug, Parser)]
#[command(name = "sealproxy", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve with a configuration file
    Run {
        /// The configuration
        #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(named_file))]
        config: PathBuf,
    },
    /// Try it: a sandbox bank, throwaway certificates and the proxy in one command; needs no files
    #[cfg(feature = "sandbox")]
    Dev {
        /// Keep the certificates and a configuration that `run` accepts
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The proxy's first choice of port; the next free one is taken
        #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = port)]
        port: u16,
        /// What the bank does wrong
        #[arg(long, value_name = "FAULTS", help = faults_help("From the second request on"))]
        faults: Option<Faults>,
    },
    /// Print an annotated configuration: one to begin with, or `reference`, every setting with its default
    #[command(override_usage = "sealproxy init becm [--sandbox]\n       sealproxy init reference")]
    Init {
        /// The bank, or all settings
        sample: Sample,
        /// For the bank's sandbox
        #[arg(long)]
        sandbox: bool,
    },
    /// Check a configuration and every file it names, without serving
    Check {
        /// The configuration
        #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(named_file))]
        config: PathBuf,
        /// Also connect to every upstream and report on it; sends each one `HEAD /`, without a seal, token or body
        #[arg(long)]
        connect: bool,
        /// Print one JSON document, for machines
        #[arg(long)]
        json: bool,
    },
    /// Ask a running proxy whether it is ready; for probes in images without a shell
    Health {
        /// Its admin address, HOST:PORT
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
        admin: Admin,
        /// Ask only whether it is alive
        #[arg(long)]
        live: bool,
    },
    /// The sandbox bank alone, without a proxy
    #[cfg(feature = "sandbox")]
    Sandbox {
        /// Where it listens; port 0 is any that is free
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", value_parser = sandbox::address)]
        listen: std::net::SocketAddr,
        /// Its certificates, made where absent, and a configuration for a proxy in front of it
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Take requests without a seal as well, to measure what all but the seal costs
        #[arg(long)]
        unsealed: bool,
        /// What the bank does wrong
        #[arg(long, value_name = "FAULTS", help = faults_help("From the start"))]
        faults: Option<Faults>,
    },
}

#[cfg(feature = "sandbox")]
fn faults_help(since: &str) -> String {
    format!(
        "{since} the bank does wrong, as in reset-after-request=5%,delay=2%:300ms,seed=7: each the share of the \
         requests or connections that it befalls, the n-th the same in every run with one seed. The faults: {}",
        Mishap::names()
    )
}

/// A file can be read again, which SIGHUP and `check` rely on, and has a folder, where the paths in it begin.
fn named_file(path: PathBuf) -> Result<PathBuf, &'static str> {
    if path.as_os_str() == "-" {
        return Err(
            "the configuration must be a file: standard input cannot be read again at SIGHUP, and has no folder \
                    where the paths in it could begin. Write it to a file, and name that: --config sealproxy.yaml",
        );
    }
    Ok(path)
}

/// What can be printed: for a bank whose API and dialect are built in, or for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sample {
    /// Banque Européenne Crédit Mutuel
    Becm,
    /// Every setting, with its default and its reason
    Reference,
}

/// Reads the command line.
pub fn parse() -> Result<Command, Failure> {
    match Arguments::try_parse() {
        Ok(Arguments { command: Some(command) }) => Ok(command),
        Ok(Arguments { command: None }) => Err(Failure::NoCommand),
        Err(error) => Err(Failure::Usage(error)),
    }
}

impl Command {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        let done = self.work();
        match UNWRITTEN.get() {
            Some(error) if done.is_ok() => Err(Failure::Unwritten(error.to_string())),
            _ => done,
        }
    }

    fn work(self) -> Result<(), Failure> {
        match self {
            Self::Run { config } => run::run(&config),
            #[cfg(feature = "sandbox")]
            Self::Dev { dir, port, faults } => dev::run(dir, port, faults.unwrap_or_default()),
            Self::Init { sample, sandbox } => init::run(sample, sandbox),
            Self::Check { config, connect, json } => check::run(&config, connect, json),
            Self::Health { admin, live } => health::run(&admin, live),
            #[cfg(feature = "sandbox")]
            Self::Sandbox { listen, dir, unsealed, faults } => {
                sandbox::run(listen, &dir, !unsealed, faults.unwrap_or_default())
            }
        }
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// No command at all.
    NoCommand,
    /// The command line; also help and version, which are no failures.
    Usage(clap::Error),
    /// The configuration or a file it names, each with what to do.
    Configuration(Vec<Finding>),
    /// The configuration, and `check` said so already.
    Checked,
    /// A bank, and `check --connect` said so already.
    Unreached,
    /// Standard output took not all of what was asked for.
    Unwritten(String),
    /// Something that people can mend, and how.
    Advised(String, String),
    /// Anything else.
    Other(Box<dyn Error + Send + Sync>),
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(Box::new(error))
    }
}

/// A port, or any that is free.
#[cfg(feature = "sandbox")]
fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "a port is a number from 0 to 65535, 0 for any that is free")
}

impl Failure {
    /// Tells people on stderr, and the caller by the exit code (sysexits: 64 usage, 78 configuration).
    pub fn report(self) -> ExitCode {
        match self {
            Self::NoCommand => {
                tell(format_args!("{FIRST_STEPS}"));
                ExitCode::from(USAGE)
            }
            Self::Usage(error) => {
                // Help and version go to stdout; a closed pipe is nobody's loss.
                let _ = error.print();
                match error.kind() {
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                    _ => ExitCode::from(USAGE),
                }
            }
            Self::Configuration(findings) => {
                findings.iter().for_each(tell);
                ExitCode::from(CONFIGURATION)
            }
            Self::Checked => ExitCode::from(CONFIGURATION),
            Self::Unreached => ExitCode::FAILURE,
            Self::Unwritten(error) => {
                tell(format_args!("error: standard output cannot be written: {error}"));
                ExitCode::FAILURE
            }
            Self::Advised(reason, advice) => {
                tell(format_args!("error: {reason}. {advice}"));
                ExitCode::FAILURE
            }
            Self::Other(error) => {
                tell(format_args!("error: {}", in_words(&*error)));
                ExitCode::FAILURE
            }
        }
    }
}

const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

const FIRST_STEPS: &str = "\
sealproxy seals requests to a bank's API and sends them over mutual TLS.

  sealproxy dev                  try it: a sandbox bank, throwaway certificates and the proxy, no files needed
  sealproxy run --config FILE    serve; `sealproxy init becm` prints a configuration to start from

`sealproxy --help` lists the others.";

/// One line of data. A reader that has seen enough is nobody's fault.
fn say(line: impl fmt::Display) {
    match writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            // Of several the first.
            let _ = UNWRITTEN.set(error);
        }
        _ => {}
    }
}

/// Why standard output did not take what was said.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

/// One line for people. Whether anybody reads it is their affair.
fn tell(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The runtime of the control thread: signals, acceptors, admin pages.
fn control_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Lines that the log may hold while nobody reads it.
const LOG_LINES: usize = 16 * 1024;
