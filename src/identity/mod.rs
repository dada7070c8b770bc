//! Who we are: certificates and their keys, checked against each other. A key that does not match its
//! certificate is never built. Must not know routes, HTTP, clocks or threads.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use crate::key::{self, Key, TokenSettings};

pub mod certificate;
pub mod pem;
pub mod qcstatements;
mod tls;

use certificate::{Certificate, PublicKey};

/// Where an identity's files are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The Qualified Website Authentication Certificate: who we are on the TLS connection.
    pub qwac: Files,
    /// The Qualified Sealing Certificate: whose seal stands on the requests.
    pub qsealc: SealFiles,
}

/// A certificate chain, leaf first, and the key of the leaf.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM or DER.
    pub certificate: PathBuf,
    /// PEM or DER, unencrypted: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// A seal certificate, and where its key is.
#[derive(Clone, Debug)]
pub struct SealFiles {
    /// PEM or DER.
    pub certificate: PathBuf,
    /// The key of the first certificate.
    pub key: KeySource,
}

/// Where a private key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file, PEM or DER, unencrypted: PKCS#8, PKCS#1 or SEC1.
    File(PathBuf),
    /// On a token, which it never leaves.
    Token(TokenSettings),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Token(settings) => settings.uri.fmt(f),
        }
    }
}

/// A QWAC for TLS connections and a QSealC for seals, each with the key that fits it.
#[derive(Debug)]
pub struct Identity {
    qwac: Certificate,
    resolver: Arc<tls::ClientIdentity>,
    seal: Credential,
}

impl Identity {
    /// Reads both pairs and checks that each key fits its certificate. Reports every fault, not only the first.
    pub async fn load(settings: &Settings) -> Result<Self, Vec<Error>> {
        let qwac = load_qwac(&settings.qwac);
        let seal = load_seal(&settings.qsealc).await;
        match (qwac, seal) {
            (Ok((qwac, resolver)), Ok(seal)) => Ok(Self { qwac, resolver: Arc::new(resolver), seal }),
            (qwac, seal) => Err(qwac.err().into_iter().chain(seal.err()).flatten().collect()),
        }
    }

    /// The certificate of the TLS connection.
    pub fn qwac(&self) -> &Certificate {
        &self.qwac
    }

    /// The certificate and key of the seals.
    pub fn seal(&self) -> &Credential {
        &self.seal
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
    key: Key,
}

impl Credential {
    /// Joins a certificate and a key, if a test signature of the key verifies with the certificate.
    ///
    /// aws-lc gathers entropy for tens of milliseconds at its first signature: it happens here, before anyone waits.
    pub async fn new(certificate: Certificate, key: Key) -> Result<Self, Reason> {
        const MESSAGE: &[u8] = b"sealproxy: does this key fit this certificate?";
        let signature = key.turn().await?.sign(MESSAGE).await?;
        match certificate.verify(MESSAGE, &signature, key.scheme()) {
            Ok(()) => Ok(Self { certificate, key }),
            Err(_) => Err(Reason::Mismatch),
        }
    }

    /// The seal certificate, without its chain.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The key that signs.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

fn load_qwac(files: &Files) -> Result<(Certificate, tls::ClientIdentity), Vec<Error>> {
    let (chain, key) =
        both(read_chain(Part::QwacCertificate, &files.certificate), read_key(Part::QwacKey, &files.key))?;
    let certificate = leaf(&chain).map_err(|reason| vec![Part::QwacCertificate.fault(&*files.certificate, reason)])?;
    let resolver =
        tls::ClientIdentity::new(chain, key).map_err(|reason| vec![Part::QwacKey.fault(&*files.key, reason)])?;
    Ok((certificate, resolver))
}

async fn load_seal(files: &SealFiles) -> Result<Credential, Vec<Error>> {
    let chain = read_chain(Part::QsealcCertificate, &files.certificate)
        .and_then(|chain| leaf(&chain).map_err(|reason| Part::QsealcCertificate.fault(&*files.certificate, reason)));
    let (certificate, key) = both(chain, load_key(&files.key).await)?;
    let fault = |reason| vec![Part::QsealcKey.fault(files.key.to_string(), reason)];
    Credential::new(certificate, key).await.map_err(fault)
}

async fn load_key(source: &KeySource) -> Result<Key, Error> {
    let fault = |error: key::Error| Part::QsealcKey.fault(source.to_string(), error.into());
    match source {
        KeySource::File(path) => Key::from_der(&read_key(Part::QsealcKey, path)?).map_err(fault),
        KeySource::Token(settings) => {
            let settings = settings.clone();
            // A token may take its time, and its module may block.
            let opening = tokio::task::spawn_blocking(move || Key::on_token(&settings, PATIENCE)).await;
            opening.expect("opening a token does not panic").map_err(fault)
        }
    }
}

/// For a token to show its key when it is loaded.
const PATIENCE: Duration = Duration::from_secs(10);

fn read_chain(part: Part, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    pem::read_chain(path).map_err(|error| part.fault(path, error.reason.into()))
}

fn read_key(part: Part, path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    pem::read_key(path).map_err(|error| part.fault(path, error.reason.into()))
}

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

/// Which of an identity's four files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `qwac.certificate`
    QwacCertificate,
    /// `qwac.key`
    QwacKey,
    /// `qsealc.certificate`
    QsealcCertificate,
    /// `qsealc.key`
    QsealcKey,
}

impl Part {
    fn fault(self, place: impl Into<PathBuf>, reason: Reason) -> Error {
        Error { part: self, place: place.into(), reason }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QwacCertificate => "qwac.certificate",
            Self::QwacKey => "qwac.key",
            Self::QsealcCertificate => "qsealc.certificate",
            Self::QsealcKey => "qsealc.key",
        })
    }
}

/// What is wrong with one file of an identity.
#[derive(Debug, Error)]
#[error("{}: {reason}", place.display())]
pub struct Error {
    /// Which one.
    pub part: Part,
    /// Its path; of a key on a token its URI.
    pub place: PathBuf,
    /// What is wrong.
    pub reason: Reason,
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
    /// The TLS library does not sign with this key.
    #[error("the key cannot be used for TLS: {0}")]
    Tls(rustls::Error),
    /// The key is not the certificate's.
    #[error("the key does not match its certificate")]
    Mismatch,
}

impl Reason {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Pem(reason) => reason.hint(),
            Self::Certificate(_) => "give the certificate as the trust service provider issued it",
            Self::Key(error) => error.hint(),
            Self::Tls(_) => "give an RSA key of 2048 to 4096 bits, or an EC key on P-256",
            Self::RsaTooSmall(_) => {
                "ask the trust service provider for a certificate over an RSA key of 2048 bits or more"
            }
            Self::Mismatch => {
                "compare `openssl x509 -pubkey -noout -in CERTIFICATE` with `openssl pkey -pubout -in KEY`; the \
                 chain's first certificate must be the key's own"
            }
        }
    }
}
