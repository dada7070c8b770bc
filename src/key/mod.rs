//! A private key as a capability: it signs bytes and tells which schemes it can. A closed enum of backends
//! that are twins of each other. Must not know HTTP, X.509 or TLS.
//!
//! Signing has two steps, because what is signed holds the time of signing: [`Key::turn`] waits until the key
//! is ours (at once for a key in memory), the caller then reads its clock and renders, and [`Turn::sign`] signs.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(any(feature = "pkcs11", feature = "batch"))]
use std::task::ready;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::pki_types::PrivateKeyDer;
use thiserror::Error;

#[cfg(feature = "aws-lc")]
mod aws_lc;
#[cfg(feature = "batch")]
mod batch;
mod patience;
mod ring;
#[cfg(feature = "pkcs11")]
mod token;
pub mod uri;

pub use patience::Patience;
#[cfg(feature = "pkcs11")]
pub use token::{Fault, Refusal};
use uri::TokenUri;

/// A private key, ready to sign. Cheap to clone; never shows key material.
#[derive(Clone)]
pub struct Key {
    backend: Backend,
}

#[derive(Clone)]
enum Backend {
    Ring(Arc<ring::Key>),
    #[cfg(feature = "aws-lc")]
    AwsLc(Arc<aws_lc::Key>),
    #[cfg(feature = "batch")]
    Batch(Arc<batch::Key>),
    #[cfg(feature = "pkcs11")]
    Token(Arc<token::Key>),
}

/// A key on a token, and how much is asked of it at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSettings {
    /// Which key.
    pub uri: TokenUri,
    /// Signatures at a time, each on a session and a thread of its own; at least one.
    pub sessions: usize,
    /// Signatures that may wait for a session. One more is refused at once.
    pub waiting: usize,
}

impl Key {
    /// Takes an unencrypted private key: RSA of 2048 to 4096 bits or EC on P-256, as PKCS#8, PKCS#1 or SEC1.
    ///
    /// RSA goes to aws-lc-rs where the feature `aws-lc` is built in (its RSA is up to 2.3 times as fast as
    /// ring's, see `benches/seal.rs`), everything else to ring.
    pub fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, Error> {
        #[cfg(feature = "batch")]
        if let Some(key) = batch::Key::from_der(der)? {
            return Ok(Self { backend: Backend::Batch(Arc::new(key)) });
        }
        #[cfg(feature = "aws-lc")]
        if let Some(key) = Self::with_aws_lc(der)? {
            return Ok(key);
        }
        Self::with_ring(der)
    }

    /// The same, one at a time by aws-lc, with the feature `batch` too: the twin that tests and benches compare with.
    /// `None` for a key that is not RSA.
    #[cfg(feature = "aws-lc")]
    pub fn with_aws_lc(der: &PrivateKeyDer<'_>) -> Result<Option<Self>, Error> {
        let key = aws_lc::Key::from_der(der)?;
        Ok(key.map(|key| Self { backend: Backend::AwsLc(Arc::new(key)) }))
    }

    /// The same, always by ring.
    pub fn with_ring(der: &PrivateKeyDer<'_>) -> Result<Self, Error> {
        Ok(Self { backend: Backend::Ring(Arc::new(ring::Key::from_der(der)?)) })
    }

    /// A key on a token. Blocks until the token has told what the key is, for `patience` at most.
    #[cfg(feature = "pkcs11")]
    pub fn on_token(settings: &TokenSettings, patience: Duration) -> Result<Self, Error> {
        Ok(Self { backend: Backend::Token(Arc::new(token::Key::open(settings, patience)?)) })
    }

    /// A key on a token, which this build cannot use.
    #[cfg(not(feature = "pkcs11"))]
    pub fn on_token(_: &TokenSettings, _: Duration) -> Result<Self, Error> {
        Err(Error::NotBuilt)
    }

    /// The scheme that this key signs with unless told otherwise.
    pub fn scheme(&self) -> Scheme {
        match &self.backend {
            Backend::Ring(key) => key.scheme(),
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(_) => Scheme::RsaPkcs1Sha256,
            #[cfg(feature = "batch")]
            Backend::Batch(_) => Scheme::RsaPkcs1Sha256,
            #[cfg(feature = "pkcs11")]
            Backend::Token(key) => key.scheme(),
        }
    }

    /// All schemes that this key signs with, that of [`scheme`](Self::scheme) first. Of a key on a token what the token
    /// has mechanisms for; of a key in memory that one alone, because TLS signs with such keys by itself.
    pub fn schemes(&self) -> Vec<Scheme> {
        match &self.backend {
            #[cfg(feature = "pkcs11")]
            Backend::Token(key) => key.schemes(),
            _ => vec![self.scheme()],
        }
    }

    /// The library that signs, for logs and figures.
    pub fn backend(&self) -> &'static str {
        match &self.backend {
            Backend::Ring(_) => "ring",
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(_) => "aws-lc",
            #[cfg(feature = "batch")]
            Backend::Batch(key) => {
                if key.alone().is_some() {
                    "aws-lc"
                } else {
                    "batch"
                }
            }
            #[cfg(feature = "pkcs11")]
            Backend::Token(_) => "pkcs11",
        }
    }

    /// Whether it is on a token. What such a key signs is to be verified before it is used: nobody here has seen it
    /// made, and a fault in the middle of an RSA signature gives the key away. The libraries of keys in memory look for
    /// that themselves.
    pub fn is_on_token(&self) -> bool {
        #[cfg(feature = "pkcs11")]
        return matches!(self.backend, Backend::Token(_));
        #[cfg(not(feature = "pkcs11"))]
        false
    }

    /// Why an RSA key in memory signs one message at a time, in words; `None`: it signs several together, or is another
    /// kind of key.
    pub fn alone(&self) -> Option<&'static str> {
        match &self.backend {
            #[cfg(feature = "batch")]
            Backend::Batch(key) => key.alone(),
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(_) => Some(ONE_BY_ONE),
            Backend::Ring(_) if self.scheme() == Scheme::RsaPkcs1Sha256 => Some("ring signs, which has no such call"),
            _ => None,
        }
    }

    /// Waits for the right to sign once. Keys in memory grant it at once; a token grants a session, and refuses who
    /// would wait behind too many, or longer than his patience lasts.
    pub async fn turn(&self, patience: Patience) -> Result<Turn, Error> {
        #[cfg(not(feature = "pkcs11"))]
        let _ = patience;
        Ok(Turn(match &self.backend {
            Backend::Ring(key) => Granted::Ring(Arc::clone(key)),
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(key) => Granted::AwsLc(Arc::clone(key)),
            #[cfg(feature = "batch")]
            Backend::Batch(key) => Granted::Batch(Arc::clone(key)),
            #[cfg(feature = "pkcs11")]
            Backend::Token(key) => Granted::Token(key.turn(patience).await?),
        }))
    }

    /// Signs by itself and at once, however many others could be signed with it. `None`: a token signs in its own time.
    pub fn sign_alone(&self, message: &[u8]) -> Option<Result<Vec<u8>, Error>> {
        match &self.backend {
            Backend::Ring(key) => Some(key.sign(message)),
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(key) => Some(key.sign(message)),
            #[cfg(feature = "batch")]
            Backend::Batch(key) => Some(key.sign_alone(message)),
            #[cfg(feature = "pkcs11")]
            Backend::Token(_) => None,
        }
    }

    /// Signs while this thread waits, for interfaces that leave no other way: TLS signs in the middle of a handshake.
    /// Waits for as long as [`waiting_until`] allows this thread, and where nobody has called that not at all.
    pub fn sign_here(&self, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signed = async { self.turn(Patience::here()).await?.sign_as(scheme, message).await };
        patience::wait(signed).unwrap_or(Err(Error::Late))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("backend", &self.backend()).field("scheme", &self.scheme()).finish_non_exhaustive()
    }
}

/// Why nothing is signed together in most builds.
#[cfg(feature = "aws-lc")]
const ONE_BY_ONE: &str =
    if cfg!(feature = "batch") { "the key was loaded without" } else { "built without the feature `batch`" };

/// Lets this thread, which runs a current-thread runtime and nothing else, sign what comes in at a time together, where
/// the feature `batch` is built in and the CPU can.
pub fn gather_here() {
    #[cfg(feature = "batch")]
    batch::gather_here();
}

/// To be called before the process ends, after everything else: lets go of the tokens.
pub fn leave_tokens() {
    #[cfg(feature = "pkcs11")]
    token::leave();
}

/// What is counted of signatures that are made together.
pub fn collectors() -> Vec<Box<dyn prometheus::core::Collector>> {
    #[cfg(feature = "batch")]
    return batch::collectors();
    #[cfg(not(feature = "batch"))]
    Vec::new()
}

/// Runs `work`, within which [`Key::sign_here`] may wait until `deadline`.
pub fn waiting_until<T>(deadline: Instant, work: impl FnOnce() -> T) -> T {
    patience::until(deadline, work)
}

/// The right to sign once. The clock is read while it is held, so that waiting for a key never ages a `Date`.
pub struct Turn(Granted);

enum Granted {
    Ring(Arc<ring::Key>),
    #[cfg(feature = "aws-lc")]
    AwsLc(Arc<aws_lc::Key>),
    #[cfg(feature = "batch")]
    Batch(Arc<batch::Key>),
    #[cfg(feature = "pkcs11")]
    Token(token::Turn),
}

impl Turn {
    /// Signs `message`, which is hashed by the scheme itself.
    pub fn sign(self, message: &[u8]) -> Signing {
        Signing(match self.0 {
            Granted::Ring(key) => UnderWay::Done(Some(key.sign(message))),
            #[cfg(feature = "aws-lc")]
            Granted::AwsLc(key) => UnderWay::Done(Some(key.sign(message))),
            #[cfg(feature = "batch")]
            Granted::Batch(key) => match key.sign(message) {
                batch::Signed::Now(signature) => UnderWay::Done(Some(signature)),
                batch::Signed::Together(signature) => UnderWay::Elsewhere(signature),
            },
            #[cfg(feature = "pkcs11")]
            Granted::Token(turn) => UnderWay::Elsewhere(turn.sign(None, message)),
        })
    }

    /// The same with another scheme, one of [`Key::schemes`].
    pub fn sign_as(self, scheme: Scheme, message: &[u8]) -> Signing {
        match self.0 {
            #[cfg(feature = "pkcs11")]
            Granted::Token(turn) => Signing(UnderWay::Elsewhere(turn.sign(Some(scheme), message))),
            Granted::Ring(ref key) if key.scheme() == scheme => self.sign(message),
            #[cfg(feature = "batch")]
            Granted::Batch(_) if scheme == Scheme::RsaPkcs1Sha256 => self.sign(message),
            #[cfg(feature = "aws-lc")]
            Granted::AwsLc(_) if scheme == Scheme::RsaPkcs1Sha256 => self.sign(message),
            _ => Signing(UnderWay::Done(Some(Err(Error::Scheme(scheme))))),
        }
    }
}

/// A signature on its way: ready at once for keys in memory.
pub struct Signing(UnderWay);

enum UnderWay {
    Done(Option<Result<Vec<u8>, Error>>),
    /// At the token, or on its way with others.
    #[cfg(any(feature = "pkcs11", feature = "batch"))]
    Elsewhere(tokio::sync::oneshot::Receiver<Result<Vec<u8>, Error>>),
}

impl Future for Signing {
    type Output = Result<Vec<u8>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            UnderWay::Done(signature) => {
                let _ = cx;
                Poll::Ready(signature.take().expect("a finished signing is not polled again"))
            }
            #[cfg(any(feature = "pkcs11", feature = "batch"))]
            UnderWay::Elsewhere(signature) => {
                // Without an answer whoever was to sign has panicked.
                Poll::Ready(ready!(Pin::new(signature).poll(cx)).unwrap_or(Err(Error::Sign("key's own"))))
            }
        }
    }
}

/// What a signature is made of. The label that a bank prints for it is the dialect's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 8.2).
    RsaPkcs1Sha256,
    /// The same with SHA-384.
    RsaPkcs1Sha384,
    /// The same with SHA-512.
    RsaPkcs1Sha512,
    /// RSASSA-PSS with SHA-256, MGF1 with SHA-256 and 32 bytes of salt (RFC 8446 section 4.2.3).
    RsaPssSha256,
    /// The same with SHA-384 and 48 bytes of salt.
    RsaPssSha384,
    /// The same with SHA-512 and 64 bytes of salt.
    RsaPssSha512,
    /// ECDSA on P-256 with SHA-256, ASN.1 DER encoded (RFC 3279 section 2.2.3).
    EcdsaP256Sha256,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RsaPkcs1Sha256 => "RSA with SHA-256",
            Self::RsaPkcs1Sha384 => "RSA with SHA-384",
            Self::RsaPkcs1Sha512 => "RSA with SHA-512",
            Self::RsaPssSha256 => "RSA-PSS with SHA-256",
            Self::RsaPssSha384 => "RSA-PSS with SHA-384",
            Self::RsaPssSha512 => "RSA-PSS with SHA-512",
            Self::EcdsaP256Sha256 => "EC on P-256 with SHA-256",
        })
    }
}

/// Why no backend signs with a key in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// Below what any bank takes.
    #[error("it is an RSA key of fewer than 2048 bits")]
    Small,
    /// Beyond what ring signs with.
    #[error("it is an RSA key of more than 4096 bits")]
    Large,
    /// An EC key on another curve, or none of the kinds.
    #[error("it is of another kind, or on another curve")]
    Kind,
    /// Damaged, or of another form.
    #[error("its encoding is damaged, or lacks the public part")]
    Encoding,
    /// Numbers that are not those of one key.
    #[error("its parts do not belong together")]
    Parts,
    /// Whatever else a library has against it.
    #[error("the signature library does not take it")]
    Other,
}

impl Rejection {
    /// By the one word with which ring and aws-lc-rs tell it.
    fn of(word: &str) -> Self {
        match word {
            "TooSmall" => Self::Small,
            "TooLarge" => Self::Large,
            "WrongAlgorithm" => Self::Kind,
            "InvalidEncoding" | "VersionNotSupported" | "PublicKeyIsMissing" => Self::Encoding,
            "InconsistentComponents" | "InvalidComponent" => Self::Parts,
            _ => Self::Other,
        }
    }
}

/// Why a key cannot be used, or did not sign.
#[derive(Debug, Error)]
pub enum Error {
    /// The bytes are a key of a kind or size that no backend signs with, or no key at all.
    #[error("the key cannot be used: {0}")]
    Rejected(Rejection),
    /// As many signatures wait for the key as may.
    #[error("{0} signatures wait for this key already")]
    Busy(usize),
    /// The signatures before this one would take the key too long. Holds what this one would have taken with them.
    #[error("this key would not have signed for another {0:.1?}")]
    Behind(Duration),
    /// No signature within the time that its thread may wait.
    #[error("the key did not sign in time")]
    Late,
    /// A signature that its certificate does not verify.
    #[error("the signature that the key made is wrong: the certificate does not verify it")]
    Wrong,
    /// A scheme that is none of the key's.
    #[error("the key does not sign as {0}")]
    Scheme(Scheme),
    /// A key on a token, in a build without the way there.
    #[error("this build does not use keys behind PKCS#11")]
    NotBuilt,
    /// What is wrong with the token.
    #[cfg(feature = "pkcs11")]
    #[error(transparent)]
    Token(#[from] Fault),
    /// The backend refused to sign.
    #[error("the {0} backend did not sign")]
    Sign(&'static str),
}

impl Error {
    /// Whether the key's token does not answer now, and may another time. What it answers is another matter.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Late => true,
            #[cfg(feature = "pkcs11")]
            Self::Token(fault) => fault.is_absence(),
            _ => false,
        }
    }

    /// What to do about it, where a key is loaded.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotBuilt => "build with the feature `pkcs11`, which is on by default",
            #[cfg(feature = "pkcs11")]
            Self::Token(fault) => fault.hint(),
            Self::Late | Self::Busy(_) | Self::Behind(_) | Self::Wrong => {
                "look into the token's own log: it is too slow, or hangs, or is broken"
            }
            Self::Rejected(Rejection::Encoding) => {
                "let OpenSSL write it anew: `openssl pkcs8 -topk8 -nocrypt -in FILE -out KEY`"
            }
            _ => "give an RSA key of 2048 to 4096 bits, or one on P-256 where the profile has an algorithm for EC keys",
        }
    }
}
