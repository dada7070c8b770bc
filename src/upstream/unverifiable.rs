//! What the TLS library cannot verify, in words: which certificate of a bank's chain it is, and what is unusual about
//! it. Refuses nothing by itself: the library has refused already.

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, OtherError, RootCertStore};
use thiserror::Error;
use webpki::spki_for_anchor;

use crate::identity::algorithm::signature_in_words;
use crate::identity::certificate::{Certificate, PublicKey, name_content_in_words};

/// Why our TLS library verifies no such chain, whoever issued it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unverifiable {
    /// A signature that ring does not verify: ECDSA with SHA-512, on P-521 or on brainpool, RSA below 2048 bits,
    /// RSA-PSS with unusual parameters, Ed448, SHA-1.
    #[error("the certificate of {subject} is signed with {algorithm}, which this build's TLS library does not verify")]
    Signature {
        /// Whose certificate it is.
        subject: String,
        /// With the issuer's key, where it is known.
        algorithm: String,
        /// Whether it is that of an authority, and not the bank's own.
        authority: bool,
    },
    /// The bank's own key is of such a kind.
    #[error("the key of {subject} is {key}, whose handshakes this build's TLS library does not verify")]
    Key {
        /// Whose key it is.
        subject: String,
        /// Its algorithm and size.
        key: String,
    },
    /// X.509 version 1 or 2.
    #[error(
        "the certificate of {subject} is of X.509 version {version}; this build's TLS library takes version 3 alone"
    )]
    Version {
        /// Whose certificate it is.
        subject: String,
        /// 1 or 2.
        version: u32,
    },
    /// The bank presents an authority.
    #[error(
        "the bank presents the certificate of an authority, {0}, as its own, which this build's TLS library refuses"
    )]
    Authority(String),
    /// A certificate on the way to the root may not issue any (RFC 5280 section 4.2.1.9).
    #[error("the bank's chain leads through a certificate that is not an authority's")]
    NoAuthority,
}

impl Unverifiable {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Signature { authority: true, .. } => {
                "if you trust this authority itself, name its certificate in `trust`: of a root no signature is verified. \
                 Otherwise ask the bank for another chain"
            }
            Self::Signature { authority: false, .. } | Self::Key { .. } => {
                "verified are RSA of 2048 to 8192 bits with SHA-256 to SHA-512, ECDSA on P-256 and P-384 with SHA-256 \
                 and SHA-384, and Ed25519: ask the bank for another certificate"
            }
            Self::Version { .. } => "X.509 version 1 has no host names: ask the bank for another certificate",
            Self::Authority(_) => {
                "ask the bank for a certificate of its own, and name in `trust` the authority that issues it"
            }
            Self::NoAuthority => "ask the bank for the chain as it was issued",
        }
    }
}

/// What the library was shown: the bank's certificate, then the others that it presented, and the roots.
pub(super) struct Shown<'a> {
    chain: Vec<Certificate>,
    roots: &'a RootCertStore,
}

impl<'a> Shown<'a> {
    /// What cannot be parsed is left out.
    pub(super) fn new(
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        roots: &'a RootCertStore,
    ) -> Self {
        let all = std::iter::once(end_entity).chain(intermediates);
        let chain = all.filter_map(|certificate| Certificate::from_der(certificate.clone().into_owned()).ok());
        Self { chain: chain.collect(), roots }
    }

    /// The library's refusal of the chain; `None` where its own words will do.
    pub(super) fn explain(&self, error: &CertificateError) -> Option<Unverifiable> {
        match error {
            CertificateError::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. } => {
                self.signature(|algorithm, _| signature_in_words(signature_algorithm_id).as_deref() == Some(algorithm))
            }
            CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                self.signature(|_, key| key.is_some_and(|key| !is_verified(key)))
            }
            // What the library says of a key whose size it does not take.
            CertificateError::BadSignature => self.signature(|_, key| key.is_some_and(has_odd_size)),
            CertificateError::Other(OtherError(error)) => self.structure(error.downcast_ref()?),
            _ => None,
        }
    }

    /// The library's refusal of a signature by the bank's own key.
    pub(super) fn explain_handshake(&self, error: &CertificateError) -> Option<Unverifiable> {
        let leaf = self.chain.first()?;
        let odd = match error {
            CertificateError::BadSignature => has_odd_size(leaf.public_key()),
            CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                !is_verified(leaf.public_key())
            }
            _ => false,
        };
        odd.then(|| Unverifiable::Key { subject: leaf.subject().to_owned(), key: leaf.public_key().to_string() })
    }

    /// The first certificate whose signature, with its issuer's key, is such a one.
    fn signature(&self, odd: impl Fn(&str, Option<&PublicKey>) -> bool) -> Option<Unverifiable> {
        self.chain.iter().enumerate().find_map(|(index, certificate)| {
            let key = self.issuer_key(certificate);
            odd(certificate.signature_algorithm(), key.as_ref()).then(|| Unverifiable::Signature {
                subject: certificate.subject().to_owned(),
                algorithm: with_key(certificate.signature_algorithm(), key.as_ref()),
                authority: index > 0,
            })
        })
    }

    /// By the issuer's name, among what the bank presented and the roots.
    fn issuer_key(&self, certificate: &Certificate) -> Option<PublicKey> {
        let presented = self.chain.iter().find(|other| other.subject() == certificate.issuer());
        let anchor = || {
            let named =
                |subject: &[u8]| name_content_in_words(subject).is_some_and(|name| name == certificate.issuer());
            let anchor = self.roots.roots.iter().find(|anchor| named(&anchor.subject))?;
            PublicKey::from_der(&spki_for_anchor(anchor))
        };
        presented.map(|other| other.public_key().clone()).or_else(anchor)
    }

    fn structure(&self, error: &webpki::Error) -> Option<Unverifiable> {
        match error {
            webpki::Error::UnsupportedCertVersion => {
                let old = self.chain.iter().find(|certificate| certificate.version() != 3)?;
                Some(Unverifiable::Version { subject: old.subject().to_owned(), version: old.version() })
            }
            webpki::Error::CaUsedAsEndEntity => Some(Unverifiable::Authority(self.chain.first()?.subject().to_owned())),
            webpki::Error::EndEntityUsedAsCa => Some(Unverifiable::NoAuthority),
            _ => None,
        }
    }
}

/// The algorithm, with what is worth knowing of the key.
fn with_key(algorithm: &str, key: Option<&PublicKey>) -> String {
    match key {
        Some(PublicKey::Ec { curve, .. }) => format!("{algorithm} on {curve}"),
        Some(PublicKey::Rsa { bits, .. }) => format!("{algorithm} by a key of {bits} bits"),
        Some(PublicKey::Other(_)) | None => algorithm.to_owned(),
    }
}

/// Whether rustls with ring verifies signatures of such keys at all.
fn is_verified(key: &PublicKey) -> bool {
    match key {
        PublicKey::Rsa { .. } => !has_odd_size(key),
        PublicKey::Ec { curve, .. } => curve.is_common(),
        PublicKey::Other(oid) => oid == ED25519,
    }
}

const ED25519: &str = "1.3.101.112";

/// Whether it is an RSA key that ring takes for too short or too long.
fn has_odd_size(key: &PublicKey) -> bool {
    matches!(key, PublicKey::Rsa { bits, .. } if !(2048..=8192).contains(bits))
}
