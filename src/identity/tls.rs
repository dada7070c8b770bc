//! The rustls client-certificate resolver of one identity. A new identity means a new resolver: rustls keys its
//! resumption on the resolver's address, so a swapped certificate in an old resolver would live on in tickets.

use std::error::Error;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{InconsistentKeys, OtherError, SignatureAlgorithm, SignatureScheme};

use super::certificate::Certificate;
use super::{Reason, algorithm};
use crate::key::{self, Key, Scheme};

/// Presents one QWAC to whoever asks.
#[derive(Debug)]
pub(super) struct ClientIdentity(Arc<CertifiedKey>);

impl ClientIdentity {
    /// Borrows the key, so that whoever read it can wipe it.
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Result<Self, Reason> {
        let kind =
            || algorithm::private_key_in_words(key).unwrap_or_else(|| "of a kind without a name here".to_owned());
        let key = rustls::crypto::ring::sign::any_supported_type(key).map_err(|_| Reason::OtherKey(kind()))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => Ok(Self(Arc::new(certified))),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(Reason::Mismatch),
            Err(error) => Err(Reason::Tls(error)),
        }
    }

    /// With a key that is shown to fit the chain's `leaf` in these schemes, of which there is one at least.
    pub(super) fn at_token(
        chain: Vec<CertificateDer<'static>>,
        leaf: Certificate,
        key: Key,
        schemes: Vec<Scheme>,
    ) -> Self {
        Self(Arc::new(CertifiedKey::new(chain, Arc::new(TokenKey { key, schemes, leaf: Arc::new(leaf) }))))
    }
}

impl ResolvesClientCert for ClientIdentity {
    /// The bank's list of acceptable issuers is a hint that some banks fill wrongly: the one certificate that we
    /// have is presented whatever it says, and the bank decides.
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A key on a token, as rustls asks for signatures. The thread of the handshake waits meanwhile.
#[derive(Debug)]
struct TokenKey {
    key: Key,
    schemes: Vec<Scheme>,
    leaf: Arc<Certificate>,
}

impl SigningKey for TokenKey {
    /// PSS before PKCS #1 v1.5, which only TLS 1.2 takes.
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let pss_first =
            BY_PREFERENCE.iter().find(|(scheme, name)| self.schemes.contains(scheme) && offered.contains(name));
        let (scheme, name) = *pss_first?;
        Some(Box::new(TokenSigner { key: self.key.clone(), leaf: Arc::clone(&self.leaf), scheme, name }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.schemes[0] {
            Scheme::EcdsaP256Sha256 => SignatureAlgorithm::ECDSA,
            _ => SignatureAlgorithm::RSA,
        }
    }
}

/// Our schemes and their names in TLS (RFC 8446 section 4.2.3).
const BY_PREFERENCE: [(Scheme, SignatureScheme); 7] = [
    (Scheme::EcdsaP256Sha256, SignatureScheme::ECDSA_NISTP256_SHA256),
    (Scheme::RsaPssSha256, SignatureScheme::RSA_PSS_SHA256),
    (Scheme::RsaPssSha384, SignatureScheme::RSA_PSS_SHA384),
    (Scheme::RsaPssSha512, SignatureScheme::RSA_PSS_SHA512),
    (Scheme::RsaPkcs1Sha256, SignatureScheme::RSA_PKCS1_SHA256),
    (Scheme::RsaPkcs1Sha384, SignatureScheme::RSA_PKCS1_SHA384),
    (Scheme::RsaPkcs1Sha512, SignatureScheme::RSA_PKCS1_SHA512),
];

#[derive(Debug)]
struct TokenSigner {
    key: Key,
    leaf: Arc<Certificate>,
    scheme: Scheme,
    name: SignatureScheme,
}

impl TokenSigner {
    /// The key's signature, which the bank does not see if it is wrong.
    fn proven(&self, message: &[u8]) -> Result<Vec<u8>, key::Error> {
        let signature = self.key.sign_here(self.scheme, message)?;
        self.leaf.verify(message, &signature, self.scheme).map_err(|_| key::Error::Wrong)?;
        Ok(signature)
    }
}

impl Signer for TokenSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.proven(message).map_err(|error| OtherError(Arc::new(error)).into())
    }

    fn scheme(&self) -> SignatureScheme {
        self.name
    }
}

/// What the QWAC's key said in place of a signature, where a handshake failed for that.
pub fn failed_key(error: &rustls::Error) -> Option<Arc<dyn Error + Send + Sync>> {
    match error {
        rustls::Error::Other(OtherError(error)) if error.is::<key::Error>() => Some(Arc::clone(error)),
        _ => None,
    }
}
