//! The configuration: text to settings that are legal by construction. The only module that knows YAML and the
//! environment. A fault names file, key path, reason and what to do; one reading tells all of them.
//!
//! What the settings name is not looked at here: whether a certificate exists, fits its key or has expired is for
//! those who load it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use http::HeaderName;

use crate::files::{self, ReadError};
use crate::proxy::api::{Api, Environment};
use crate::proxy::listener;
use crate::{admin, identity, proxy, seal, upstream};

mod file;
mod finding;
mod identities;
mod limits;
mod listeners;
mod machine;
mod quantity;
mod revocation;
mod routes;
mod section;
mod upstreams;

use file::Node;
use finding::{Fault, Report};
pub use finding::{Finding, Level};
use machine::Machine;
pub(crate) use quantity::show_size;
pub use revocation::{Ocsp, Revocation};
use section::{Section, Value};

/// All settings of one proxy. A value of this type has passed every check that needs no other file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it was read from.
    pub file: PathBuf,
    /// Where local clients reach the proxy; at least one, none twice.
    pub listen: Vec<listener::Settings>,
    /// Further names of the proxy itself, in lower case.
    pub hosts: Vec<String>,
    /// Where probes and metrics are served.
    pub admin: Vec<admin::Settings>,
    /// Reactors: 1 to 256.
    pub threads: usize,
    /// Whether an error of any identity keeps the proxy from starting; otherwise one that can be used is enough.
    pub strict: bool,
    /// Who we are, by name; at least one.
    pub identities: BTreeMap<String, identity::Settings>,
    /// How the certificates of an identity are checked for revocation, by its name. Absent: not at all.
    pub revocation: BTreeMap<String, Revocation>,
    /// The banks, by name; at least one. The identity of each exists.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Which paths go where; at least one. The upstream of each exists.
    pub routes: Vec<proxy::route::Settings>,
    /// What is taken at most.
    pub limits: proxy::Limits,
    /// How long the proxy waits.
    pub timeouts: proxy::Timeouts,
    /// How long new requests are still served once the process is asked to end; zero: not at all.
    pub linger: Duration,
    /// How long requests under way have to finish after that; zero: no time.
    pub drain: Duration,
}

/// One bank: how it is reached, who we are there, how it wants requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// How it is reached.
    pub settings: upstream::Settings,
    /// Which of its environments this is.
    pub environment: Environment,
    /// The name of the identity that is presented to it.
    pub identity: String,
    /// Which of the identity's seals the bank knows.
    pub registrations: Vec<Registration>,
    /// How requests are sealed; its key id where there is one seal only.
    pub profile: seal::Profile,
    /// Whether its key ids are names of its own even where they look like fingerprints. Otherwise one of 40 hexadecimal
    /// digits is the SHA-1 of the certificate that it belongs to.
    pub opaque_key_ids: bool,
    /// What is true of its API.
    pub api: &'static Api,
    /// Headers that may reach it beside those of the API.
    pub pass: Vec<HeaderName>,
}

/// A seal as one bank knows it: banks take only keys that were registered with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its name among the identity's seals.
    pub seal: String,
    /// Its name at the bank; `None`: as the profile makes it from the certificate.
    pub key_id: Option<String>,
    /// Since when; `None`: not yet.
    pub from: Option<SystemTime>,
    /// Where its key id stands or would stand, below the upstream.
    pub key_id_setting: String,
}

impl Registration {
    /// Whether its time has come.
    pub fn is_due(&self, now: SystemTime) -> bool {
        self.from.is_some_and(|from| from <= now)
    }
}

const KEYS: [&str; 10] =
    ["listen", "hosts", "admin", "threads", "start", "identities", "upstreams", "routes", "limits", "timeouts"];
const STARTS: [(&str, bool); 2] = [("usable", false), ("strict", true)];
/// Room for thousands of upstreams; a path that leads to a log or an image is not read to its end.
const MAX_FILE: u64 = 1 << 20;
const MAX_THREADS: usize = 256;

impl Config {
    /// Reads a file, with the environment of this process. `Ok` carries what is legal but worth a look; `Err` has at
    /// least one error.
    pub fn load(path: &Path) -> Result<(Self, Vec<Finding>), Vec<Finding>> {
        let text = read(path).map_err(|finding| vec![finding])?;
        Self::parse(path, &text, &|name| std::env::var(name).ok())
    }

    /// Parses a text as if it stood in the file `path`, where relative paths begin. Reads neither files nor the
    /// environment; `auto` is what this machine has.
    pub fn parse(
        path: &Path,
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<Finding>), Vec<Finding>> {
        Self::parse_on(&Machine::here(), path, text, env)
    }

    fn parse_on(
        machine: &Machine,
        path: &Path,
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<Finding>), Vec<Finding>> {
        let report = Report::new(path.to_owned());
        let node = Node::read(text, env, &report);
        let root = node.as_ref().and_then(|node| Value::root(node, &report).section(&KEYS));
        let config = root.map(|root| Self::build(&root, path, machine));
        match config {
            Some(config) if !report.has_errors() => Ok((config, report.into_findings())),
            _ => Err(report.into_findings()),
        }
    }

    /// Reads every section. Where an error was reported a default may stand in, or an entry be missing.
    fn build(root: &Section<'_>, path: &Path, machine: &Machine) -> Self {
        let folder = path.parent().unwrap_or(Path::new(""));
        let deadlines = limits::timeouts(root);
        let listen = listeners::listen(root);
        let hosts = listeners::hosts(root);
        let admin = listeners::admin(root, &listen);
        let threads = threads(root, machine);
        let strict = root.value("start").and_then(|value| value.choice("start", &STARTS)).unwrap_or(false);
        let limits = limits::limits(root, machine);
        let (identities, identity_names) = identities::identities(root, folder, limits.waiting_seals);
        let revocation = revocation::revocations(root, folder);
        let context = upstreams::Context {
            folder,
            names: &identity_names,
            identities: &identities,
            timeouts: deadlines.upstream,
            in_flight: limits.proxy.in_flight,
        };
        let (upstreams, upstream_names) = upstreams::upstreams(root, &context);
        let routes = routes::routes(root, &upstream_names, &upstreams);
        let config = Self {
            file: path.to_owned(),
            listen,
            hosts,
            admin,
            threads,
            strict,
            identities,
            revocation,
            upstreams,
            routes,
            limits: limits.proxy,
            timeouts: deadlines.proxy,
            linger: deadlines.linger,
            drain: deadlines.drain,
        };
        if !root.report.has_errors() {
            config.warn_of_unused(root.report);
        }
        config
    }

    fn warn_of_unused(&self, report: &Report) {
        for name in self.identities.keys().filter(|name| !self.upstreams.values().any(|u| u.identity == **name)) {
            let fault = Fault::new("no upstream has this identity")
                .code("unused")
                .hint("name it in an upstream, or take it away");
            report.warning(&format!("identities.{name}"), fault);
        }
        for name in self.upstreams.keys().filter(|name| !self.routes.iter().any(|route| route.upstream == **name)) {
            let fault =
                Fault::new("no route leads to this upstream").code("unused").hint("add a route, or take it away");
            report.warning(&format!("upstreams.{name}"), fault);
        }
    }
}

fn threads(root: &Section<'_>, machine: &Machine) -> usize {
    let auto = machine.cores.clamp(1, MAX_THREADS);
    root.quantity(
        "threads",
        auto,
        |text| if text == "auto" { Ok(auto) } else { quantity::whole(text, 1..=MAX_THREADS) },
    )
}

/// A byte order mark, in UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();

fn read(path: &Path) -> Result<String, Finding> {
    let mut bytes = files::read(path, MAX_FILE).map_err(|error| unreadable(path, &error))?;
    // Some editors begin a file with a mark of its encoding, which the parser takes for a document of its own.
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        unusable(path, format!("line {line}: the file is not UTF-8"), "save it as UTF-8")
    })?;
    Ok(text.to_owned())
}

fn unreadable(path: &Path, error: &ReadError) -> Finding {
    let hint = match error {
        ReadError::Folder => return unusable(path, "this is a folder", "name the file in it with --config FILE"),
        ReadError::NoFile => {
            let hint = "give a file: a pipe or a device cannot be read again when the configuration is";
            return unusable(path, "the path does not name a regular file", hint);
        }
        ReadError::TooLarge(_) => {
            return unusable(path, "the file is larger than 1MiB", "is it a configuration at all?");
        }
        ReadError::Unreadable(error) => match error.kind() {
            io::ErrorKind::NotFound => "name it with --config FILE; `sealproxy init becm` prints one to begin with",
            io::ErrorKind::PermissionDenied => "let the user that runs sealproxy read it",
            _ => "name a regular file with --config FILE",
        },
    };
    unusable(path, format!("the file cannot be read: {error}"), hint)
}

fn unusable(path: &Path, reason: impl Into<String>, hint: &str) -> Finding {
    Finding::error(path, "", reason).hint(hint).code("unreadable-file")
}

#[cfg(test)]
mod tests;
