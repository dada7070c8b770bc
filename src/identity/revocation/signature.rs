//! Signatures of issuers and responders, by ring. SHA-1 and RSA below 2048 bits are not taken.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, UnparsedPublicKey, VerificationAlgorithm,
};
use thiserror::Error;
use x509_parser::prelude::{AlgorithmIdentifier, SubjectPublicKeyInfo};
use x509_parser::signature_algorithm::RsaSsaPssParams;

/// Whether this key made the signature over the message, by the algorithm of this identifier.
pub(super) fn verify(
    key: &SubjectPublicKeyInfo<'_>,
    identifier: &AlgorithmIdentifier<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    let algorithm =
        algorithm(key, identifier).ok_or_else(|| SignatureError::Algorithm(identifier.algorithm.to_id_string()))?;
    let key = UnparsedPublicKey::new(algorithm, &key.subject_public_key.data);
    key.verify(message, signature).map_err(|_| SignatureError::Bad)
}

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// ring does not verify it, or not safely; its object identifier.
    #[error("the signature's algorithm, {0}, is not supported with this key")]
    Algorithm(String),
    /// Made by another key, or over something else.
    #[error("the signature is not by this key")]
    Bad,
}

fn algorithm(
    key: &SubjectPublicKeyInfo<'_>,
    identifier: &AlgorithmIdentifier<'_>,
) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (&*identifier.algorithm.to_id_string(), &*curve(key)) {
        ("1.2.840.113549.1.1.11", _) => &RSA_PKCS1_2048_8192_SHA256,
        ("1.2.840.113549.1.1.12", _) => &RSA_PKCS1_2048_8192_SHA384,
        ("1.2.840.113549.1.1.13", _) => &RSA_PKCS1_2048_8192_SHA512,
        ("1.2.840.113549.1.1.10", _) => return pss(identifier),
        ("1.2.840.10045.4.3.2", P256) => &ECDSA_P256_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", P256) => &ECDSA_P256_SHA384_ASN1,
        ("1.2.840.10045.4.3.2", P384) => &ECDSA_P384_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", P384) => &ECDSA_P384_SHA384_ASN1,
        ("1.3.101.112", _) => &ED25519,
        _ => return None,
    })
}

const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";

/// The named curve of an EC key (RFC 5480 section 2.1.1); empty for any other key.
fn curve(key: &SubjectPublicKeyInfo<'_>) -> String {
    let parameters = key.algorithm.parameters.as_ref();
    parameters.and_then(|parameters| parameters.as_oid().ok()).map_or_else(String::new, |oid| oid.to_id_string())
}

/// RSASSA-PSS (RFC 4055 section 3.1). ring takes a salt as long as the digest, and the digest again for the mask.
fn pss(identifier: &AlgorithmIdentifier<'_>) -> Option<&'static dyn VerificationAlgorithm> {
    let parameters = RsaSsaPssParams::try_from(identifier.parameters.as_ref()?).ok()?;
    Some(match &*parameters.hash_algorithm_oid().to_id_string() {
        "2.16.840.1.101.3.4.2.1" => &RSA_PSS_2048_8192_SHA256,
        "2.16.840.1.101.3.4.2.2" => &RSA_PSS_2048_8192_SHA384,
        "2.16.840.1.101.3.4.2.3" => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}
