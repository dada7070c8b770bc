//! Which of a token's mechanisms makes which signature, and what is given to it. Must not know sessions or slots.

use std::ffi::c_ulong;

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::super::Scheme;

/// A scheme, and the mechanism of one token that signs with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) scheme: Scheme,
    mechanism: MechanismType,
    hash: Hash,
    /// Whether the token takes a hash and not the message.
    hashed_here: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// Every scheme with the mechanism that hashes on the token, which is preferred, and the one that takes a hash. What
/// seals are signed with comes first, and each hash before its longer ones: what tokens do best.
const RSA: [(Scheme, MechanismType, MechanismType, Hash); 6] = [
    (Scheme::RsaPkcs1Sha256, MechanismType::SHA256_RSA_PKCS, MechanismType::RSA_PKCS, Hash::Sha256),
    (Scheme::RsaPssSha256, MechanismType::SHA256_RSA_PKCS_PSS, MechanismType::RSA_PKCS_PSS, Hash::Sha256),
    (Scheme::RsaPssSha384, MechanismType::SHA384_RSA_PKCS_PSS, MechanismType::RSA_PKCS_PSS, Hash::Sha384),
    (Scheme::RsaPssSha512, MechanismType::SHA512_RSA_PKCS_PSS, MechanismType::RSA_PKCS_PSS, Hash::Sha512),
    (Scheme::RsaPkcs1Sha384, MechanismType::SHA384_RSA_PKCS, MechanismType::RSA_PKCS, Hash::Sha384),
    (Scheme::RsaPkcs1Sha512, MechanismType::SHA512_RSA_PKCS, MechanismType::RSA_PKCS, Hash::Sha512),
];
const EC: [(Scheme, MechanismType, MechanismType, Hash); 1] =
    [(Scheme::EcdsaP256Sha256, MechanismType::ECDSA_SHA256, MechanismType::ECDSA, Hash::Sha256)];

impl Way {
    /// All ways of an RSA key, or else of one on P-256, that lead over mechanisms of `known`. A key that takes its
    /// message `in_parts` can only be used with a mechanism that hashes.
    pub(super) fn all(rsa: bool, known: &[MechanismType], in_parts: bool) -> Vec<Self> {
        let candidates: &[_] = if rsa { &RSA } else { &EC };
        let ways = candidates.iter().filter_map(|(scheme, hashing, bare, hash)| {
            let way = |mechanism, hashed_here| Self { scheme: *scheme, mechanism, hash: *hash, hashed_here };
            if known.contains(hashing) {
                return Some(way(*hashing, false));
            }
            (!in_parts && known.contains(bare)).then(|| way(*bare, true))
        });
        ways.collect()
    }

    /// The mechanism with its parameters.
    pub(super) fn mechanism(&self) -> Mechanism<'static> {
        match self.mechanism {
            MechanismType::RSA_PKCS => Mechanism::RsaPkcs,
            MechanismType::SHA256_RSA_PKCS => Mechanism::Sha256RsaPkcs,
            MechanismType::SHA384_RSA_PKCS => Mechanism::Sha384RsaPkcs,
            MechanismType::SHA512_RSA_PKCS => Mechanism::Sha512RsaPkcs,
            MechanismType::RSA_PKCS_PSS => Mechanism::RsaPkcsPss(self.hash.pss()),
            MechanismType::SHA256_RSA_PKCS_PSS => Mechanism::Sha256RsaPkcsPss(self.hash.pss()),
            MechanismType::SHA384_RSA_PKCS_PSS => Mechanism::Sha384RsaPkcsPss(self.hash.pss()),
            MechanismType::SHA512_RSA_PKCS_PSS => Mechanism::Sha512RsaPkcsPss(self.hash.pss()),
            MechanismType::ECDSA_SHA256 => Mechanism::EcdsaSha256,
            _ => Mechanism::Ecdsa,
        }
    }

    /// What the token is given of a message.
    pub(super) fn data(&self, message: &[u8]) -> Vec<u8> {
        match self.mechanism {
            MechanismType::RSA_PKCS => [&self.hash.digest_info()[..], &self.hash.of(message)].concat(),
            _ if self.hashed_here => self.hash.of(message),
            _ => message.to_vec(),
        }
    }
}

impl Hash {
    fn of(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha384 => Sha384::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        }
    }

    /// `DigestInfo` without the hash (RFC 8017 section 9.2, note 1).
    fn digest_info(self) -> [u8; 19] {
        let (total, algorithm, length) = match self {
            Self::Sha256 => (0x31, 0x01, 0x20),
            Self::Sha384 => (0x41, 0x02, 0x30),
            Self::Sha512 => (0x51, 0x03, 0x40),
        };
        [
            0x30, total, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, algorithm, 0x05, 0x00,
            0x04, length,
        ]
    }

    /// TLS wants the hash of the message in the mask too, and as many bytes of salt as it has (RFC 8446 section 4.2.3).
    fn pss(self) -> PkcsPssParams {
        let (hash_alg, mgf, salt): (_, _, c_ulong) = match self {
            Self::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32),
            Self::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48),
            Self::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 64),
        };
        PkcsPssParams { hash_alg, mgf, s_len: salt.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schemes(rsa: bool, known: &[MechanismType], in_parts: bool) -> Vec<Scheme> {
        Way::all(rsa, known, in_parts).iter().map(|way| way.scheme).collect()
    }

    #[test]
    fn only_what_the_token_has_mechanisms_for_is_offered() {
        use Scheme as S;
        let seals = [MechanismType::SHA256_RSA_PKCS, MechanismType::SHA256_RSA_PKCS_PSS, MechanismType::ECDSA];
        assert_eq!(schemes(true, &seals, false), [S::RsaPkcs1Sha256, S::RsaPssSha256]);
        assert_eq!(schemes(false, &seals, false), [S::EcdsaP256Sha256]);
        assert_eq!(schemes(false, &seals, true), [], "a bare mechanism takes no parts");
        let bare = schemes(true, &[MechanismType::RSA_PKCS], false);
        assert_eq!(bare, [S::RsaPkcs1Sha256, S::RsaPkcs1Sha384, S::RsaPkcs1Sha512]);
        assert_eq!(schemes(true, &[], false), []);
    }

    #[test]
    fn a_mechanism_that_hashes_gets_the_message_and_any_other_its_hash() {
        let data = |mechanism| Way::all(true, &[mechanism], false)[0].data(b"m");
        assert_eq!(data(MechanismType::SHA256_RSA_PKCS), b"m");
        assert_eq!(data(MechanismType::RSA_PKCS_PSS), Sha256::digest(b"m").to_vec());
        assert_eq!(data(MechanismType::RSA_PKCS).len(), 19 + 32);
    }
}
