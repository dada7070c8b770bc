//! Who we are: certificates and their keys, checked against each other. A key that does not match its
//! certificate is never built. Must not know routes, HTTP, clocks or threads.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::key::{self, Key, Patience, Scheme, TokenSettings};

pub mod algorithm;
pub mod certificate;
mod chain;
mod encrypted;
pub mod exposure;
mod passphrase;
pub mod pem;
pub mod preflight;
pub mod qcstatements;
pub mod revocation;
pub mod revocation_list;
mod tls;

pub use passphrase::{Passphrase, PassphraseError, PassphraseSource};
pub use tls::failed_key;

use certificate::{Certificate, PublicKey};
use pem::Bundle;
use preflight::Expectations;

/// Where an identity's certificates and keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The Qualified Website Authentication Certificate: who we are on the TLS connection.
    pub qwac: Pair,
    /// The Qualified Sealing Certificates: whose seals stand on the requests. At least one; each name once.
    pub seals: Vec<SealSettings>,
    /// What its certificates must say.
    pub expectations: Expectations,
    /// Whether a QWAC may take the place of one with another subject: the bank knows its client by it.
    pub allow_subject_change: bool,
}

/// One seal certificate under the name that the upstreams know it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealSettings {
    /// Its name.
    pub name: String,
    /// Its certificate and key.
    pub pair: Pair,
}

/// A certificate chain, leaf first, and the key of the leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where it stands in the identity's settings: `qwac`, `qsealc` or `qsealc[1]`.
    pub setting: String,
    /// PEM or DER; or the PKCS#12 bundle.
    pub certificate: PathBuf,
    /// The key of the first certificate.
    pub key: KeySource,
    /// What opens the key, if it is encrypted. A bundle always has one.
    pub passphrase: Option<PassphraseSource>,
}

impl Settings {
    /// The QWAC and every seal.
    pub fn pairs(&self) -> impl Iterator<Item = &Pair> {
        std::iter::once(&self.qwac).chain(self.seals.iter().map(|seal| &seal.pair))
    }
}

impl Pair {
    /// The files to watch.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let key = match &self.key {
            KeySource::File(path) => Some(path.as_path()),
            KeySource::Bundle => None,
            KeySource::Token(token) => token.uri.pin.as_deref(),
        };
        let passphrase = match &self.passphrase {
            Some(PassphraseSource::File(path)) => Some(path.as_path()),
            _ => None,
        };
        std::iter::once(self.certificate.as_path()).chain(key).chain(passphrase)
    }

    /// The name in the settings of what holds the certificate.
    pub fn certificate_setting(&self) -> &'static str {
        if self.key == KeySource::Bundle { "pkcs12" } else { "certificate" }
    }

    /// The name in the settings of what holds the key.
    pub fn key_setting(&self) -> &'static str {
        if self.key == KeySource::Bundle { "pkcs12" } else { "key" }
    }

    fn fault(&self, file: &str, place: impl Into<PathBuf>, reason: Reason) -> Error {
        Error { setting: format!("{}.{file}", self.setting), place: place.into(), reason }
    }

    fn read_passphrase(&self) -> Result<Option<Passphrase>, Error> {
        let Some(source) = &self.passphrase else { return Ok(None) };
        source.read().map(Some).map_err(|error| {
            let place = source.place(&error);
            self.fault("passphrase", place, pem::Reason::from(error).into())
        })
    }

    fn read_chain(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        pem::read_chain(&self.certificate).map_err(|error| self.certificate_fault(error.reason.into()))
    }

    fn read_key(&self, path: &Path) -> Result<Zeroizing<PrivateKeyDer<'static>>, Error> {
        let key = match self.read_passphrase()? {
            Some(passphrase) => pem::read_encrypted_key(path, &passphrase),
            None => pem::read_key(path),
        };
        key.map(Zeroizing::new).map_err(|error| self.key_fault(error.reason.into()))
    }

    fn read_bundle(&self) -> Result<Bundle, Error> {
        let Some(passphrase) = self.read_passphrase()? else {
            return Err(self.key_fault(pem::Reason::Encrypted.into()));
        };
        let bundle = pem::read_bundle(&self.certificate, &passphrase);
        bundle.map_err(|error| self.key_fault(error.reason.into()))
    }

    fn read_leaf(&self, chain: &[CertificateDer<'static>]) -> Result<Certificate, Error> {
        leaf(chain).map_err(|reason| self.certificate_fault(reason))
    }

    fn certificate_fault(&self, reason: Reason) -> Error {
        self.fault(self.certificate_setting(), &*self.certificate, reason)
    }

    fn key_fault(&self, reason: Reason) -> Error {
        let place = match &self.key {
            KeySource::Bundle => self.certificate.clone(),
            KeySource::File(path) => path.clone(),
            KeySource::Token(settings) => settings.uri.to_string().into(),
        };
        self.fault(self.key_setting(), place, reason)
    }
}

/// Where a private key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file, PEM or DER: PKCS#8, PKCS#1 or SEC1.
    File(PathBuf),
    /// With its certificates, in the PKCS#12 bundle that the pair's `certificate` names.
    Bundle,
    /// On a token, which it never leaves.
    Token(TokenSettings),
}

/// The certificate of TLS connections, with the key that fits it.
#[derive(Debug)]
pub struct Qwac {
    certificate: Certificate,
    chain: Vec<CertificateDer<'static>>,
    resolver: Arc<tls::ClientIdentity>,
    at_token: Option<usize>,
}

impl Qwac {
    /// Reads certificate and key and checks that they belong together. Reports every fault, not only the first.
    pub async fn load(pair: &Pair) -> Result<Self, Vec<Error>> {
        let (resolver, certificate, chain, at_token) = match &pair.key {
            KeySource::File(_) | KeySource::Bundle => {
                let Bundle { chain, key } = read_both(pair).await?;
                let certificate = pair.read_leaf(&chain).map_err(|error| vec![error])?;
                (tls::ClientIdentity::new(chain.clone(), &key), certificate, chain, None)
            }
            KeySource::Token(settings) => {
                let leaf = |chain: Vec<_>| Ok((pair.read_leaf(&chain)?, chain));
                let ((certificate, chain), key) =
                    both(pair.read_chain().and_then(leaf), open_token(pair, settings).await)?;
                let fitting = fitting(&key, &certificate).await;
                let resolver = fitting
                    .map(|schemes| tls::ClientIdentity::at_token(chain.clone(), certificate.clone(), key, schemes));
                (resolver, certificate, chain, Some(settings.sessions + settings.waiting))
            }
        };
        if certificate.version() != 3 {
            let reason = Reason::OldVersion(certificate.version());
            return Err(vec![pair.fault("certificate", &*pair.certificate, reason)]);
        }
        let resolver = resolver.map_err(|reason| vec![pair.key_fault(reason)])?;
        Ok(Self { certificate, chain, resolver: Arc::new(resolver), at_token })
    }

    /// The leaf.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What is presented, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Where the key is on a token: how many handshakes may be on their way to it, those that it signs for included.
    /// Such a handshake stands still while the token signs, and belongs in [`signing_until`].
    pub fn at_token(&self) -> Option<usize> {
        self.at_token
    }

    /// What answers a bank that asks for a client certificate.
    pub fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::clone(&self.resolver) as _
    }
}

/// A seal certificate and its key, shown to fit by a signature.
#[derive(Clone, Debug)]
pub struct Credential {
    certificate: Certificate,
    chain: Vec<CertificateDer<'static>>,
    key: Key,
}

impl Credential {
    /// Reads the certificate, opens the key and checks that they belong together. Reports every fault.
    pub async fn load(pair: &Pair) -> Result<Self, Vec<Error>> {
        let (chain, key) = match &pair.key {
            KeySource::File(_) | KeySource::Bundle => {
                let Bundle { chain, key } = read_both(pair).await?;
                (Ok(chain), opened(key).await.map_err(|error| pair.key_fault(error.into())))
            }
            KeySource::Token(settings) => (pair.read_chain(), open_token(pair, settings).await),
        };
        let leaf = |chain: Vec<_>| Ok((pair.read_leaf(&chain)?, chain));
        let ((certificate, chain), key) = both(chain.and_then(leaf), key)?;
        let fitting = in_time(Self::new(certificate, key)).await.map_err(|reason| vec![pair.key_fault(reason)])?;
        Ok(Self { chain, ..fitting })
    }

    /// Joins a certificate and a key, if a test signature of the key verifies with the certificate.
    ///
    /// aws-lc gathers entropy for tens of milliseconds at its first signature: it happens here, before anyone waits.
    pub async fn new(certificate: Certificate, key: Key) -> Result<Self, Reason> {
        fits(&key, key.scheme(), &certificate).await?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        Ok(Self { certificate, chain, key })
    }

    /// The seal certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The certificates as they were given, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The key that signs.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// Runs `work`, within which a key on a token may be waited for until `deadline`.
pub fn signing_until<T>(deadline: Instant, work: impl FnOnce() -> T) -> T {
    key::waiting_until(deadline, work)
}

/// A key's schemes that it is seen to sign with so that the certificate's public key verifies it: a token may have a
/// mechanism, and the key no leave to use it. The reason of the first, if there is none.
async fn fitting(key: &Key, certificate: &Certificate) -> Result<Vec<Scheme>, Reason> {
    let (mut fitting, mut first) = (Vec::new(), None);
    for scheme in key.schemes() {
        match in_time(fits(key, scheme, certificate)).await {
            Ok(()) => fitting.push(scheme),
            // It would be as silent to the others.
            Err(Reason::Key(key::Error::Late)) => return Err(key::Error::Late.into()),
            Err(reason) => first = first.or(Some(reason)),
        }
    }
    if fitting.is_empty() { Err(first.unwrap_or(Reason::Mismatch)) } else { Ok(fitting) }
}

async fn fits(key: &Key, scheme: Scheme, certificate: &Certificate) -> Result<(), Reason> {
    const MESSAGE: &[u8] = b"sealproxy: does this key fit this certificate?";
    let signature = key.turn(Patience::of(PATIENCE)).await?.sign_as(scheme, MESSAGE).await?;
    certificate.verify(MESSAGE, &signature, scheme).map_err(|_| Reason::Mismatch)
}

/// For tokens that hang.
async fn in_time<T>(trial: impl Future<Output = Result<T, Reason>>) -> Result<T, Reason> {
    timeout(PATIENCE, trial).await.unwrap_or(Err(key::Error::Late.into()))
}

/// The chain and the key that files hold. On a thread that may take its time, because a key that is encrypted well
/// takes long to open, and whoever waits here may have connections to accept.
async fn read_both(pair: &Pair) -> Result<Bundle, Vec<Error>> {
    let pair = pair.clone();
    let reading = tokio::task::spawn_blocking(move || match &pair.key {
        KeySource::File(path) => both(pair.read_chain(), pair.read_key(path)).map(|(chain, key)| Bundle { chain, key }),
        _ => pair.read_bundle().map_err(|error| vec![error]),
    });
    reading.await.expect("reading files does not panic")
}

/// The key in memory, on such a thread too: a build that seals in batches times it.
async fn opened(der: Zeroizing<PrivateKeyDer<'static>>) -> Result<Key, key::Error> {
    let opening = tokio::task::spawn_blocking(move || Key::from_der(&der)).await;
    opening.expect("a key is taken or refused")
}

async fn open_token(pair: &Pair, settings: &TokenSettings) -> Result<Key, Error> {
    let settings = settings.clone();
    // A token may take its time, and its module may block.
    let opening = tokio::task::spawn_blocking(move || Key::on_token(&settings, PATIENCE)).await;
    opening.expect("opening a token does not panic").map_err(|error| pair.key_fault(error.into()))
}

/// For a token to show its key when it is loaded, and for each of its test signatures.
const PATIENCE: Duration = Duration::from_secs(10);

fn leaf(chain: &[CertificateDer<'static>]) -> Result<Certificate, Reason> {
    let first = chain.first().expect("a chain that was read has a certificate");
    let certificate = Certificate::from_der(first.clone())?;
    match certificate.public_key() {
        PublicKey::Rsa { bits, .. } if *bits < 2048 => Err(Reason::RsaTooSmall(*bits)),
        _ => Ok(certificate),
    }
}

fn both<A, B>(a: Result<A, Error>, b: Result<B, Error>) -> Result<(A, B), Vec<Error>> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (a, b) => Err(a.err().into_iter().chain(b.err()).collect()),
    }
}

/// What is wrong with one file of an identity.
#[derive(Debug)]
pub struct Error {
    /// Where it stands in the identity's settings: `qwac.key`, `qsealc[1].certificate`.
    pub setting: String,
    /// Its path; of a key on a token its URI.
    pub place: PathBuf,
    /// What is wrong.
    pub reason: Reason,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place.display(), self.reason)
    }
}

/// The reason stands in the text already: the chain goes on with what is behind it.
impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.reason.source()
    }
}

/// What can be wrong with a file of an identity.
#[derive(Debug, Error)]
pub enum Reason {
    /// Its format.
    #[error(transparent)]
    Pem(#[from] pem::Reason),
    /// The certificate in it.
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    /// The key in it.
    #[error(transparent)]
    Key(#[from] key::Error),
    /// An RSA key with too short a modulus.
    #[error("the certificate's RSA key has {0} bits, and no bank takes fewer than 2048")]
    RsaTooSmall(usize),
    /// A certificate that the TLS library does not present.
    #[error("the certificate is of X.509 version {0}, and TLS presents those of version 3 alone")]
    OldVersion(u32),
    /// A key in a file that the TLS library does not sign with, by its kind.
    #[error("the key is {0}, and cannot be used for TLS")]
    OtherKey(String),
    /// The TLS library does not sign with this key.
    #[error("the key is none that TLS signs with here, or damaged")]
    Tls(#[source] rustls::Error),
    /// The key is not the certificate's.
    #[error("the key does not match its certificate")]
    Mismatch,
}

/// The word for a key whose token does not answer now.
pub const TOKEN_ABSENT: &str = "token-absent";

impl Reason {
    /// One stable word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Pem(_) => pem::Reason::CODE,
            Self::Certificate(_) => "malformed-certificate",
            Self::Key(error) if error.is_absence() => TOKEN_ABSENT,
            Self::Key(_) | Self::OtherKey(_) | Self::Tls(_) => "unusable-key",
            Self::RsaTooSmall(_) => "small-key",
            Self::OldVersion(_) => "old-version",
            Self::Mismatch => "key-mismatch",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Pem(reason) => reason.hint(),
            Self::Certificate(_) | Self::OldVersion(_) => {
                "give the certificate as the trust service provider issued it"
            }
            Self::Key(error) => error.hint(),
            Self::OtherKey(_) | Self::Tls(_) => {
                "a QWAC's key in a file is RSA of 2048, 3072 or 4096 bits with an exponent of 65537 or more, EC on P-256 or \
                 P-384, or Ed25519: ask for a certificate over such a key; if it is one, `openssl pkey -in KEY -out NEW` writes it \
                 anew"
            }
            Self::RsaTooSmall(_) => {
                "ask the trust service provider for a certificate over an RSA key of 2048 bits or more"
            }
            Self::Mismatch => {
                "compare `openssl x509 -pubkey -noout -in CERTIFICATE` with `openssl pkey -pubout -in KEY` (on a \
                 token `pkcs11-tool --read-object --type pubkey`); the chain's first certificate must be the key's own"
            }
        }
    }
}
