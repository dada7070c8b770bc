//! Keys in memory that ring signs with: RSA and EC on P-256. Twin of `aws_lc.rs`.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

use super::{Error, Rejection, Scheme};

pub(super) struct Key {
    pair: Pair,
    random: SystemRandom,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ec(Box<EcdsaKeyPair>),
}

impl Key {
    pub(super) fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, Error> {
        let random = SystemRandom::new();
        let pair = match der {
            PrivateKeyDer::Pkcs1(key) => rsa(RsaKeyPair::from_der(key.secret_pkcs1_der()))?,
            PrivateKeyDer::Sec1(key) => ec(&pkcs8_of_sec1(key.secret_sec1_der())?, &random)?,
            PrivateKeyDer::Pkcs8(key) => {
                let der = key.secret_pkcs8_der();
                ec(der, &random).or_else(|not_ec| match rsa(RsaKeyPair::from_pkcs8(der)) {
                    // Neither, and the first one may have been near.
                    Err(Error::Rejected(Rejection::Kind)) => Err(not_ec),
                    other => other,
                })?
            }
            _ => return Err(Error::Rejected(Rejection::Encoding)),
        };
        Ok(Self { pair, random })
    }

    pub(super) fn scheme(&self) -> Scheme {
        match self.pair {
            Pair::Rsa(_) => Scheme::RsaPkcs1Sha256,
            Pair::Ec(_) => Scheme::EcdsaP256Sha256,
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature).map_err(|_| Error::Sign("ring"))?;
                Ok(signature)
            }
            Pair::Ec(pair) => {
                let signature = pair.sign(&self.random, message).map_err(|_| Error::Sign("ring"))?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
}

fn rsa(pair: Result<RsaKeyPair, ring::error::KeyRejected>) -> Result<Pair, Error> {
    pair.map(|pair| Pair::Rsa(Box::new(pair))).map_err(|reason| Error::Rejected(Rejection::of(&reason.to_string())))
}

fn ec(pkcs8: &[u8], random: &SystemRandom) -> Result<Pair, Error> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, random)
        .map(|pair| Pair::Ec(Box::new(pair)))
        .map_err(|reason| Error::Rejected(Rejection::of(&reason.to_string())))
}

/// Wraps a SEC1 `ECPrivateKey` (RFC 5915) in PKCS#8 (RFC 5208), the only form of EC key that ring takes.
fn pkcs8_of_sec1(sec1: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    // INTEGER 0, SEQUENCE { id-ecPublicKey, prime256v1 }
    const VERSION_AND_ALGORITHM: [u8; 24] = [
        0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    // A key on P-256 is far below.
    let head = |tag: u8, length: usize| match u8::try_from(length) {
        // DER has no longer form of a length than it needs, and ring takes no other.
        Ok(length @ 0..=127) => Ok(vec![tag, length]),
        Ok(length) => Ok(vec![tag, 0x81, length]),
        Err(_) => Err(Error::Rejected(Rejection::Kind)),
    };
    let key = head(0x04, sec1.len())?;
    let whole = head(0x30, VERSION_AND_ALGORITHM.len() + key.len() + sec1.len())?;
    // In one piece: a buffer that grows leaves copies behind.
    Ok(Zeroizing::new([&*whole, &VERSION_AND_ALGORITHM, &*key, sec1].concat()))
}
