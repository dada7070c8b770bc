//! The files of a sandbox in one folder: its authority, the bank's certificate, a demo TPP's QWAC and QSealC, and a
//! configuration for a proxy in front of the bank. Made once, then read again.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use thiserror::Error;

use super::authority::{self, Authority, Issued, KeyKind, Tpp};
use super::bank::{self, faults::Faults};
use crate::identity::certificate::{self, Certificate};
use crate::identity::pem;

/// A folder with all that a sandbox needs.
#[derive(Clone, Debug)]
pub struct Kit {
    folder: PathBuf,
}

impl Kit {
    /// Opens the kit in `folder`, or makes it there: nothing that exists is overwritten, and nothing is written beside
    /// somebody else's files, which could name ours.
    pub fn open_or_make(folder: &Path, now: SystemTime) -> Result<Self, Error> {
        let kit = Self { folder: folder.to_owned() };
        if !kit.is_whole()? {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| kit.io(folder, error))?;
            kit.make(now)?;
        }
        Ok(kit)
    }

    /// Whether all files are there; an error where some are, or a configuration that is not ours.
    fn is_whole(&self) -> Result<bool, Error> {
        let (there, absent): (Vec<_>, Vec<_>) = FILES.into_iter().partition(|name| self.path(name).exists());
        let config = self.path(CONFIG);
        match (there.first(), absent.first()) {
            (_, None) => Ok(true),
            (_, Some(_)) if config.exists() && !is_ours(&config) => Err(Error::Foreign(config)),
            (None, _) => Ok(false),
            (Some(_), Some(absent)) if is_ours(&config) => Err(Error::Half(self.path(absent))),
            (Some(there), _) => Err(Error::Foreign(self.path(there))),
        }
    }

    fn make(&self, now: SystemTime) -> Result<(), Error> {
        let authority = Authority::new(now)?;
        let tpp = Tpp::demo();
        self.write("ca.pem", authority.certificate_pem())?;
        self.write_pair("bank", &authority.server(&["127.0.0.1", "localhost"], KeyKind::P256)?)?;
        self.write_pair("qwac", &authority.qwac(&tpp, KeyKind::Rsa2048)?)?;
        self.write("other-qsealc.pem", &authority.qsealc(&tpp, KeyKind::P256)?.chain_pem)?;
        self.write_pair("qsealc", &authority.qsealc(&tpp, KeyKind::Rsa2048)?)
    }

    /// What a bank needs that serves this kit's TPP under `authorities` (`host:port`).
    pub fn bank(&self, authorities: Vec<String>) -> Result<bank::Settings, Error> {
        Ok(bank::Settings {
            server_chain: pem::read_chain(&self.path("bank.pem"))?,
            server_key: pem::read_key(&self.path("bank.key"))?,
            client_roots: pem::read_chain(&self.path("ca.pem"))?,
            seal: self.leaf("qsealc.pem")?,
            other_seal: Some(self.leaf("other-qsealc.pem")?),
            authorities,
            demands_seal: true,
            faults: Faults::default(),
            clock: SystemTime::now,
        })
    }

    /// Writes `sealproxy.yaml`: a proxy in front of the bank. Paths in it are relative to the folder.
    pub fn write_config(&self, bank: SocketAddr, proxy: SocketAddr, admin: SocketAddr) -> Result<PathBuf, Error> {
        let path = self.path(CONFIG);
        if path.exists() && !is_ours(&path) {
            return Err(Error::Foreign(path));
        }
        fs::write(&path, config(bank, proxy, admin)).map_err(|error| self.io(&path, error))?;
        Ok(path)
    }

    /// A file of the kit.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn leaf(&self, name: &str) -> Result<Certificate, Error> {
        let leaf = pem::read_chain(&self.path(name))?.remove(0);
        Ok(Certificate::from_der(leaf)?)
    }

    fn write_pair(&self, name: &str, issued: &Issued) -> Result<(), Error> {
        self.write(&format!("{name}.key"), &issued.key_pem)?;
        self.write(&format!("{name}.pem"), &issued.chain_pem)
    }

    /// Never over a file that is there already, and readable by this user alone.
    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.path(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| self.io(&path, error))
    }

    fn io(&self, path: &Path, source: io::Error) -> Error {
        Error::File { path: path.to_owned(), source }
    }
}

/// Whether a configuration is one that we wrote.
fn is_ours(config: &Path) -> bool {
    fs::read_to_string(config).is_ok_and(|text| text.starts_with(OUR_FIRST_LINE))
}

const CONFIG: &str = "sealproxy.yaml";

/// What is made.
const FILES: [&str; 8] =
    ["ca.pem", "bank.pem", "bank.key", "qwac.pem", "qwac.key", "other-qsealc.pem", "qsealc.key", "qsealc.pem"];

/// What a configuration of ours begins with: any other is somebody's work.
const OUR_FIRST_LINE: &str = "# A proxy in front of a sandbox bank on this machine, written anew";

fn config(bank: SocketAddr, proxy: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "\
# A proxy in front of a sandbox bank on this machine, written anew by each `sealproxy dev --dir`: keep changes elsewhere.
# Throwaway certificates: nothing here is worth protecting.
listen: [\"{proxy}\"]
admin: [\"{admin}\"]
identities:
  demo:
    qwac:   {{ certificate: qwac.pem,   key: qwac.key }}
    qsealc: {{ certificate: qsealc.pem, key: qsealc.key }}
upstreams:
  bank:
    url: https://{bank}
    environment: sandbox
    identity: demo
    profile: becm
    trust: ca.pem
    private: true               # the bank is on loopback
    pass: [x-sandbox-fault]     # asks the sandbox bank to do wrong
routes:
  - {{ path: /sandbox/becm/stet-psd2-api/, upstream: bank }}
  - {{ path: /sandbox/becm/oauth2/token,   upstream: bank, methods: [POST], seal: false }}
"
    )
}

/// Why there is no kit.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or folder.
    #[error("{}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A file of a kit that is there otherwise.
    #[error("{} is missing, and the others that this program made with it are there", .0.display())]
    Half(PathBuf),
    /// Somebody else's file.
    #[error("{} is there already, and not of this program's making: choose an empty folder", .0.display())]
    Foreign(PathBuf),
    /// Issuing.
    #[error("the sandbox authority could not issue a certificate")]
    Authority(#[from] authority::Error),
    /// A file that is not what it was when the kit was made.
    #[error(transparent)]
    Pem(#[from] pem::Error),
    /// The same.
    #[error("a certificate of the sandbox cannot be read")]
    Certificate(#[from] certificate::Error),
}
