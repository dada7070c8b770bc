//! Whose certificates a bank may present, and the files that say so: roots and revocation lists. Judges no bank.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use thiserror::Error;
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::Pin;
use crate::identity::pem;
use crate::identity::revocation_list::RevocationList;

/// Whose certificates a bank may present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Where a chain must end.
    pub roots: Roots,
    /// Keys of which one must be on the verified path; empty: any.
    pub pins: Vec<Pin>,
    /// Files of revocation lists (RFC 5280 section 5); empty: nothing is asked. Otherwise each certificate of the path
    /// below its anchor must be covered by a list of its issuer that has not expired, as OpenSSL's `-crl_check_all`
    /// and nginx's `ssl_crl` have it: a setting that covers nothing must not look as if it did.
    pub lists: Vec<PathBuf>,
}

impl Trust {
    /// The files to watch.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let roots = match &self.roots {
            Roots::System => None,
            Roots::File(path) => Some(path.as_path()),
        };
        roots.into_iter().chain(self.lists.iter().map(PathBuf::as_path))
    }
}

/// The authorities that a chain may end at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// Those of the operating system.
    #[default]
    System,
    /// The certificates in a PEM file, and no others.
    File(PathBuf),
}

impl Roots {
    /// At least one.
    pub(super) fn load(&self) -> Result<Arc<RootCertStore>, TrustError> {
        let store = match self {
            Self::System => system()?,
            Self::File(path) => {
                let certificates = pem::read_chain(path).map_err(TrustError::Pem)?;
                store(certificates).ok_or_else(|| TrustError::NoAnchor(path.clone()))?
            }
        };
        Ok(Arc::new(store))
    }
}

fn system() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    store(found.certs).ok_or_else(|| TrustError::NoSystemRoots(found.errors.into_iter().next()))
}

/// `None` without a single usable certificate. Operating systems ship roots that no library reads: those are left out.
fn store(certificates: Vec<CertificateDer<'static>>) -> Option<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    (!store.is_empty()).then_some(store)
}

/// Revocation lists that the library takes, none of them expired when they were read.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) der: Vec<CertificateRevocationListDer<'static>>,
    pub(super) parsed: Vec<CertRevocationList<'static>>,
    /// The first moment at which one of them is too old.
    pub(super) expiry: Option<SystemTime>,
}

impl Lists {
    pub(super) fn load(paths: &[PathBuf], now: SystemTime) -> Result<Self, TrustError> {
        let mut lists = Self::default();
        for path in paths {
            for list in pem::read_revocation_lists(path).map_err(TrustError::List)? {
                lists.parsed.push(judged(path, &list, now)?);
                lists.der.push(list.der().to_vec().into());
                lists.expiry = lists.expiry.into_iter().chain(list.next_update()).min();
            }
        }
        Ok(lists)
    }
}

fn judged(path: &Path, list: &RevocationList, now: SystemTime) -> Result<CertRevocationList<'static>, TrustError> {
    let (path, issuer) = (path.to_owned(), list.issuer().to_owned());
    match list.next_update() {
        // The library counts the moment itself as too late.
        Some(since) if since <= now => Err(TrustError::ExpiredList { path, issuer, since }),
        _ => OwnedCertRevocationList::from_der(list.der()).map(Into::into).map_err(|fault| TrustError::BadList {
            path,
            issuer,
            fault,
        }),
    }
}

/// Why a bank's certificates cannot be judged.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The PEM file.
    #[error(transparent)]
    Pem(pem::Error),
    /// A file without a certificate that can be a trust anchor.
    #[error("{}: none of its certificates can be a trust anchor", .0.display())]
    NoAnchor(PathBuf),
    /// The operating system has no roots.
    #[error("the operating system has no trusted certificates")]
    NoSystemRoots(#[source] Option<rustls_native_certs::Error>),
    /// A file of revocation lists.
    #[error(transparent)]
    List(pem::Error),
    /// A revocation list that the library does not take: delta and indirect ones, those without `nextUpdate`, and other
    /// departures from RFC 5280 section 5.
    #[error("{}: the revocation list of {issuer} is of a kind that the TLS library does not take: {}", .path.display(), lack(fault))]
    BadList {
        /// The file.
        path: PathBuf,
        /// Whose list it is.
        issuer: String,
        /// What the library says.
        fault: webpki::Error,
    },
    /// A revocation list whose successor is due.
    #[error("{}: the revocation list of {issuer} expired on {}", .path.display(), moment(*.since))]
    ExpiredList {
        /// The file.
        path: PathBuf,
        /// Whose list it is.
        issuer: String,
        /// Its `nextUpdate`.
        since: SystemTime,
    },
}

impl TrustError {
    /// The setting that it is about.
    pub fn setting(&self) -> &'static str {
        match self {
            Self::Pem(_) | Self::NoAnchor(_) | Self::NoSystemRoots(_) => "trust",
            Self::List(_) | Self::BadList { .. } | Self::ExpiredList { .. } => "trust.crl",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Pem(error) | Self::List(error) => error.reason.hint(),
            Self::NoAnchor(_) => "give the certificates of the authority that issued the bank's certificate",
            Self::NoSystemRoots(_) => {
                "install the package ca-certificates, set SSL_CERT_FILE, or name a PEM file in `trust`"
            }
            Self::BadList { .. } => {
                "give the authority's complete list as RFC 5280 section 5 has it: version 2, with `nextUpdate` and a CRL \
                 number. `openssl ca -gencrl` makes such a list where `crlnumber` and `crl_extensions` are configured"
            }
            Self::ExpiredList { .. } => "fetch the authority's present list, and do so again before each `nextUpdate`",
        }
    }
}

/// What it probably lacks, where the library's word for it says little.
fn lack(fault: &webpki::Error) -> String {
    match fault {
        webpki::Error::BadDer => "it is damaged, or of version 1".to_owned(),
        webpki::Error::MalformedExtensions => "it has no extensions, or damaged ones".to_owned(),
        fault => format!("{fault:?}"),
    }
}

/// httpdate writes only years from 1970 to 9999, and a list may name others.
fn moment(time: SystemTime) -> String {
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    httpdate::fmt_http_date(time.clamp(SystemTime::UNIX_EPOCH, last))
}
