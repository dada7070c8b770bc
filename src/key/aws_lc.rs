//! RSA keys in memory that aws-lc-rs signs with. Twin of `ring.rs`.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;

use super::{Error, Rejection};

pub(super) struct Key {
    pair: RsaKeyPair,
    random: SystemRandom,
}

impl Key {
    /// `None` for a key that is not RSA: another backend's turn.
    pub(super) fn from_der(der: &PrivateKeyDer<'_>) -> Result<Option<Self>, Error> {
        let pair = match der {
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(key) if names_rsa(key.secret_pkcs8_der()) => {
                RsaKeyPair::from_pkcs8(key.secret_pkcs8_der())
            }
            _ => return Ok(None),
        };
        let pair = pair.map_err(|reason| Error::Rejected(Rejection::of(&reason.to_string())))?;
        // As ring does, so that a build without this backend takes the same keys.
        if pair.public_modulus_len() > MAX_MODULUS {
            return Err(Error::Rejected(Rejection::Large));
        }
        Ok(Some(Self { pair, random: SystemRandom::new() }))
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature).map_err(|_| Error::Sign("aws-lc"))?;
        Ok(signature)
    }
}

/// Bytes of the longest modulus.
const MAX_MODULUS: usize = 4096 / 8;

/// Whether a PKCS#8 key's algorithm is rsaEncryption (1.2.840.113549.1.1.1, RFC 8017 appendix C).
fn names_rsa(pkcs8: &[u8]) -> bool {
    const RSA_ENCRYPTION: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    // The identifier stands right behind the outer header (4 bytes), the version (3) and its own header (2).
    pkcs8.get(..32).is_some_and(|head| head.windows(RSA_ENCRYPTION.len()).any(|window| window == RSA_ENCRYPTION))
}
