//! Pins: public keys of which one must lie on the verified path from a bank's certificate to its anchor. Always beside
//! the verification, never instead of it (RFC 7469 section 2.6). Must not know where pins are configured.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use thiserror::Error;
use webpki::{
    Cert, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath, spki_for_anchor,
};

/// The SHA-256 of a `SubjectPublicKeyInfo` in DER (RFC 7469 section 2.4): of a key, whatever certificate carries it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a key.
    pub fn of(public_key_info: &[u8]) -> Self {
        Self(digest(&SHA256, public_key_info).as_ref().try_into().expect("a SHA-256 has 32 bytes"))
    }
}

impl FromStr for Pin {
    type Err = NoPin;

    /// `sha256:` and 64 hex digits, or the Base64 of the hash (RFC 4648 section 4), by itself, behind `sha256:`, or
    /// behind `sha256//` as curl writes it.
    fn from_str(text: &str) -> Result<Self, NoPin> {
        let hash = text.strip_prefix("sha256:");
        let bytes = match hash.and_then(from_hex) {
            Some(bytes) => bytes,
            None => {
                let base64 = hash.or_else(|| text.strip_prefix("sha256//")).unwrap_or(text);
                STANDARD.decode(base64).map_err(|_| NoPin)?
            }
        };
        bytes.try_into().map(Self).map_err(|_| NoPin)
    }
}

/// A text that is not a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("is not the SHA-256 of a public key")]
pub struct NoPin;

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok())).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The pins of one upstream, and all that it takes to find the path again which the library verified without showing
/// it.
///
/// What counts is the path, not the presented chain: anyone may present a pinned authority's certificate beside a chain
/// of his own. And the whole path counts, from the bank's certificate to the anchor, though banks rarely present the
/// anchor: that is the validated chain of RFC 7469 section 2.6, and the only way to pin a root.
pub(super) struct Pinning {
    pub(super) pins: Vec<Pin>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) lists: Vec<CertRevocationList<'static>>,
    pub(super) algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
}

impl fmt::Debug for Pinning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinning").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Pinning {
    /// Whether there is a path that verifies and holds a pinned key, for a chain that has been verified by the same
    /// rules.
    pub(super) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PinMismatch> {
        let found = RefCell::new(Vec::new());
        let pinned = |path: &VerifiedPath<'_>| {
            let keys = keys(path);
            let pinned = keys.iter().any(|key| self.pins.contains(key));
            let mut found = found.borrow_mut();
            keys.into_iter().for_each(|key| {
                if !found.contains(&key) {
                    found.push(key);
                }
            });
            // The library goes on with the next path, if there is one.
            if pinned { Ok(()) } else { Err(webpki::Error::CertDistrusted) }
        };
        let verified = self.verify(end_entity, intermediates, now, &pinned);
        verified.map_err(|_| PinMismatch { found: found.into_inner(), expected: self.pins.clone() })
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        pinned: &dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error>,
    ) -> Result<(), webpki::Error> {
        let lists: Vec<_> = self.lists.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let (roots, usage) = (&self.roots.roots, KeyUsage::server_auth());
        let leaf = EndEntityCert::try_from(end_entity)?;
        let path = leaf.verify_for_usage(self.algorithms, roots, intermediates, now, usage, revocation, Some(pinned));
        path.map(|_| ())
    }
}

/// The keys on a path, from the bank's to the anchor's.
fn keys(path: &VerifiedPath<'_>) -> Vec<Pin> {
    let leaf = path.end_entity().subject_public_key_info();
    let authorities = path.intermediate_certificates().map(Cert::subject_public_key_info);
    let keys = std::iter::once(leaf).chain(authorities).chain([spki_for_anchor(path.anchor())]);
    keys.map(|key| Pin::of(&key)).collect()
}

/// A bank that is trusted, and whose keys are none of those that are pinned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the verified path has the keys {}, and pinned are {}", list(.found), list(.expected))]
pub struct PinMismatch {
    /// On the path, the bank's own first.
    pub found: Vec<Pin>,
    /// By the configuration.
    pub expected: Vec<Pin>,
}

fn list(pins: &[Pin]) -> String {
    pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    // The SHA-256 of the empty string, by sha256sum and openssl.
    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const BASE64: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn a_pin_is_read_as_hex_and_as_base64_and_written_as_hex() {
        let pin = Pin::of(b"");
        assert_eq!(format!("sha256:{HEX}").parse(), Ok(pin));
        assert_eq!(format!("sha256:{}", HEX.to_uppercase()).parse(), Ok(pin));
        assert_eq!(BASE64.parse(), Ok(pin));
        assert_eq!(format!("sha256:{BASE64}").parse(), Ok(pin));
        assert_eq!(format!("sha256//{BASE64}").parse(), Ok(pin));
        assert_eq!(pin.to_string(), format!("sha256:{HEX}"));
    }

    #[test]
    fn whatever_has_not_32_bytes_is_no_pin() {
        for text in ["", "sha256:", HEX, &HEX[1..], "sha256:é", "sha1:0000", &BASE64[1..], "AAAA", "*"] {
            assert_eq!(text.parse::<Pin>(), Err(NoPin), "{text}");
        }
        assert_eq!(format!("sha256:{}", &HEX[2..]).parse::<Pin>(), Err(NoPin));
        assert_eq!(format!("sha256:+{}", &HEX[1..]).parse::<Pin>(), Err(NoPin));
    }
}
