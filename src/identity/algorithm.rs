//! The names of algorithms that certificates tell by object identifiers, for people. Judges none of them.

use rustls::pki_types::PrivateKeyDer;
use x509_parser::asn1_rs::{Any, Oid};
use x509_parser::prelude::{AlgorithmIdentifier, FromDer as _};
use x509_parser::signature_algorithm::RsaSsaPssParams;

/// A signature algorithm, from the content of its `AlgorithmIdentifier` (RFC 5280 section 4.1.1.2) without tag and
/// length. `None` if it is none.
pub fn signature_in_words(content: &[u8]) -> Option<String> {
    let der = sequence(content);
    let (rest, algorithm) = AlgorithmIdentifier::from_der(&der).ok()?;
    // The parser takes NULL for an identifier without a number.
    let sound = rest.is_empty() && !algorithm.algorithm.as_bytes().is_empty();
    sound.then(|| signature(&algorithm))
}

/// Puts tag and length before the content of a SEQUENCE (X.690 section 8.9).
pub(super) fn sequence(content: &[u8]) -> Vec<u8> {
    yasna::construct_der(|writer| writer.write_sequence(|writer| writer.next().write_der(content)))
}

/// Whether DER begins as a SEQUENCE must (X.690 section 8.9.1). x509-parser looks at the tag's number alone, and takes
/// it as a primitive or spelt in more octets too.
pub(super) fn is_sequence(der: &[u8]) -> bool {
    der.first() == Some(&SEQUENCE)
}

const SEQUENCE: u8 = 0x30;

pub(super) fn signature(algorithm: &AlgorithmIdentifier<'_>) -> String {
    let oid = algorithm.algorithm.to_id_string();
    let name = match oid.as_str() {
        "1.2.840.113549.1.1.10" => return pss(algorithm),
        "1.2.840.113549.1.1.4" => "RSA and MD5",
        "1.2.840.113549.1.1.5" => "RSA and SHA-1",
        "1.2.840.113549.1.1.11" => "RSA and SHA-256",
        "1.2.840.113549.1.1.12" => "RSA and SHA-384",
        "1.2.840.113549.1.1.13" => "RSA and SHA-512",
        "1.2.840.113549.1.1.14" => "RSA and SHA-224",
        "1.2.840.10045.4.1" => "ECDSA and SHA-1",
        "1.2.840.10045.4.3.1" => "ECDSA and SHA-224",
        "1.2.840.10045.4.3.2" => "ECDSA and SHA-256",
        "1.2.840.10045.4.3.3" => "ECDSA and SHA-384",
        "1.2.840.10045.4.3.4" => "ECDSA and SHA-512",
        "1.2.840.10040.4.3" => "DSA and SHA-1",
        _ => return key(&oid).map_or_else(|| format!("the algorithm {oid}"), str::to_owned),
    };
    name.to_owned()
}

/// RSASSA-PSS with its parameters (RFC 4055 section 3.1), of which libraries know a few combinations.
fn pss(algorithm: &AlgorithmIdentifier<'_>) -> String {
    let parameters = algorithm.parameters.as_ref().and_then(|any| RsaSsaPssParams::try_from(any).ok());
    let Some(parameters) = parameters else { return "RSA-PSS without proper parameters".to_owned() };
    let mask = parameters.mask_gen_algorithm().map_or_else(|_| "unknown".to_owned(), |mask| hash(&mask.hash));
    let salt = parameters.salt_length();
    format!("RSA-PSS and {} (MGF1 with {mask}, {salt} bytes of salt)", hash(parameters.hash_algorithm_oid()))
}

fn hash(oid: &Oid<'_>) -> String {
    let oid = oid.to_id_string();
    let name = match oid.as_str() {
        "1.3.14.3.2.26" => "SHA-1",
        "2.16.840.1.101.3.4.2.1" => "SHA-256",
        "2.16.840.1.101.3.4.2.2" => "SHA-384",
        "2.16.840.1.101.3.4.2.3" => "SHA-512",
        "2.16.840.1.101.3.4.2.4" => "SHA-224",
        _ => return format!("the hash {oid}"),
    };
    name.to_owned()
}

/// The kind of a private key, such as `EC on P-521`. `None` if it is none that people have a name for.
pub(super) fn private_key_in_words(key: &PrivateKeyDer<'_>) -> Option<String> {
    match key {
        PrivateKeyDer::Pkcs1(key) => rsa(key.secret_pkcs1_der()),
        PrivateKeyDer::Sec1(key) => sec1(key.secret_sec1_der()),
        PrivateKeyDer::Pkcs8(key) => pkcs8(key.secret_pkcs8_der()),
        _ => None,
    }
}

/// `PrivateKeyInfo` (RFC 5208 section 5). Nothing is copied: it is a secret.
fn pkcs8(der: &[u8]) -> Option<String> {
    let (content, _) = member(Any::from_der(der).ok()?.1.data)?;
    let (rest, algorithm) = AlgorithmIdentifier::from_der(content).ok()?;
    match algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.1" => rsa(member(rest)?.1.data),
        "1.2.840.10045.2.1" => Some(on_curve(&algorithm.parameters?.as_oid().ok()?)),
        oid => Some(key(oid).map_or_else(|| format!("of the algorithm {oid}"), str::to_owned)),
    }
}

/// `RSAPrivateKey` (RFC 8017 appendix A.1.2).
fn rsa(der: &[u8]) -> Option<String> {
    let (content, _) = member(Any::from_der(der).ok()?.1.data)?;
    let (_, modulus) = member(content)?;
    let zeros: usize = modulus.data.iter().position(|byte| *byte != 0)?;
    let first = modulus.data[zeros].leading_zeros() as usize;
    Some(format!("RSA of {} bits", (modulus.data.len() - zeros) * 8 - first))
}

/// `ECPrivateKey` (RFC 5915 section 3), which names its curve if it does not lie within PKCS #8.
fn sec1(der: &[u8]) -> Option<String> {
    let (content, _) = member(Any::from_der(der).ok()?.1.data)?;
    let (content, _) = member(content)?;
    let (_, parameters) = member(content)?;
    Some(on_curve(&Oid::from_der(parameters.data).ok()?.1))
}

/// The first of what a SEQUENCE contains, and what follows it.
fn member(content: &[u8]) -> Option<(&[u8], Any<'_>)> {
    Any::from_der(content).ok()
}

fn on_curve(oid: &Oid<'_>) -> String {
    let oid = oid.to_id_string();
    let name = match oid.as_str() {
        "1.2.840.10045.3.1.7" => Some("P-256"),
        "1.3.132.0.34" => Some("P-384"),
        oid => curve(oid),
    };
    name.map_or_else(|| format!("EC on the curve {oid}"), |name| format!("EC on {name}"))
}

/// An algorithm of keys that is neither rsaEncryption nor id-ecPublicKey.
pub(super) fn key(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "1.3.101.112" => "Ed25519",
        "1.3.101.113" => "Ed448",
        "1.2.840.10040.4.1" => "DSA",
        "1.2.840.113549.1.1.10" => "RSA-PSS",
        _ => return None,
    })
}

/// A named curve (RFC 5480 section 2.1.1.1, RFC 5639 section 4.1).
pub(super) fn curve(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "1.3.132.0.33" => "P-224",
        "1.3.132.0.35" => "P-521",
        "1.3.132.0.10" => "secp256k1",
        "1.3.36.3.3.2.8.1.1.7" => "brainpoolP256r1",
        "1.3.36.3.3.2.8.1.1.8" => "brainpoolP256t1",
        "1.3.36.3.3.2.8.1.1.11" => "brainpoolP384r1",
        "1.3.36.3.3.2.8.1.1.12" => "brainpoolP384t1",
        "1.3.36.3.3.2.8.1.1.13" => "brainpoolP512r1",
        "1.3.36.3.3.2.8.1.1.14" => "brainpoolP512t1",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_has_a_name_and_the_rest_its_number() {
        // The contents of AlgorithmIdentifiers, by `openssl asn1parse`.
        assert_eq!(
            signature_in_words(b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04").as_deref(),
            Some("ECDSA and SHA-512")
        );
        assert_eq!(signature_in_words(b"\x06\x03\x2b\x65\x71").as_deref(), Some("Ed448"));
        assert_eq!(signature_in_words(b"\x06\x03\x2b\x65\x7f").as_deref(), Some("the algorithm 1.3.101.127"));
        let pss = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x00";
        let words = "RSA-PSS and SHA-1 (MGF1 with SHA-1, 20 bytes of salt)";
        assert_eq!(signature_in_words(pss).as_deref(), Some(words), "RFC 4055 section 3.1 has these defaults");
        for damaged in [&b""[..], b"\x06", b"\x05\x00", b"\x06\x09\x2a"] {
            assert_eq!(signature_in_words(damaged), None, "{damaged:?}");
        }
    }
}
