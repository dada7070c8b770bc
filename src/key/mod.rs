//! A private key as a capability: it signs bytes and tells which schemes it can. A closed enum of backends
//! that are twins of each other. Must not know HTTP, X.509 or TLS.
//!
//! Signing has two steps, because what is signed holds the time of signing: [`Key::turn`] waits until the key
//! is ours (at once for a key in memory), the caller then reads its clock and renders, and [`Turn::sign`] signs.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::PrivateKeyDer;
use thiserror::Error;

#[cfg(feature = "aws-lc")]
mod aws_lc;
mod ring;

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
}

impl Key {
    /// Takes an unencrypted private key: RSA of 2048 to 4096 bits or EC on P-256, as PKCS#8, PKCS#1 or SEC1.
    ///
    /// RSA goes to aws-lc-rs where the feature `aws-lc` is built in (its RSA is up to 2.3 times as fast as
    /// ring's, see `benches/seal.rs`), everything else to ring.
    pub fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, Error> {
        #[cfg(feature = "aws-lc")]
        if let Some(key) = aws_lc::Key::from_der(der)? {
            return Ok(Self { backend: Backend::AwsLc(Arc::new(key)) });
        }
        Self::with_ring(der)
    }

    /// The same, always by ring: the twin that tests and benches compare with.
    pub fn with_ring(der: &PrivateKeyDer<'_>) -> Result<Self, Error> {
        Ok(Self { backend: Backend::Ring(Arc::new(ring::Key::from_der(der)?)) })
    }

    /// The one scheme that this key signs with.
    pub fn scheme(&self) -> Scheme {
        match &self.backend {
            Backend::Ring(key) => key.scheme(),
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(_) => Scheme::RsaPkcs1Sha256,
        }
    }

    /// The library that signs, for logs and figures.
    pub fn backend(&self) -> &'static str {
        match &self.backend {
            Backend::Ring(_) => "ring",
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(_) => "aws-lc",
        }
    }

    /// Waits for the right to sign once. Keys in memory grant it at once; a token grants a session.
    pub async fn turn(&self) -> Result<Turn, Error> {
        Ok(Turn { backend: self.backend.clone() })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("backend", &self.backend()).field("scheme", &self.scheme()).finish_non_exhaustive()
    }
}

/// The right to sign once. The clock is read while it is held, so that waiting for a key never ages a `Date`.
pub struct Turn {
    backend: Backend,
}

impl Turn {
    /// Signs `message`, which is hashed by the scheme itself.
    pub fn sign(self, message: &[u8]) -> Signing {
        Signing(Some(match &self.backend {
            Backend::Ring(key) => key.sign(message),
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(key) => key.sign(message),
        }))
    }
}

/// A signature on its way: ready at once for keys in memory.
pub struct Signing(Option<Result<Vec<u8>, Error>>);

impl Future for Signing {
    type Output = Result<Vec<u8>, Error>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(self.0.take().expect("a finished signing is not polled again"))
    }
}

/// What a signature is made of. The label that a bank prints for it is the dialect's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 8.2).
    RsaPkcs1Sha256,
    /// ECDSA on P-256 with SHA-256, ASN.1 DER encoded (RFC 3279 section 2.2.3).
    EcdsaP256Sha256,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RsaPkcs1Sha256 => "RSA with SHA-256",
            Self::EcdsaP256Sha256 => "EC on P-256 with SHA-256",
        })
    }
}

/// Why a key cannot be used, or did not sign.
#[derive(Debug, Error)]
pub enum Error {
    /// The bytes are a key of a kind or size that no backend signs with, or no key at all.
    #[error("the key cannot be used: {0}")]
    Rejected(String),
    /// The backend refused to sign.
    #[error("the {0} backend did not sign")]
    Sign(&'static str),
}
