//! Opens encrypted private keys (PKCS#8, RFC 5958 section 3, with PBES2 of RFC 8018) and PKCS#12 bundles (RFC 7292).
//! What they cost is bounded: a file that asks for an hour of key derivation is refused. Must not know files.

use std::fmt;

use p12_keystore::error::Error as BundleError;
use p12_keystore::{CertificateBag, Pkcs12Archive};
use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::ErrorKind;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::{Kdf, ScryptParams};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::certificate;
use super::passphrase::Passphrase;
use super::pem::Reason;

/// The DER of the key within an `EncryptedPrivateKeyInfo`.
pub(super) fn key(der: &[u8], passphrase: &Passphrase) -> Result<Zeroizing<Vec<u8>>, Reason> {
    let info = EncryptedPrivateKeyInfoRef::try_from(der).map_err(|error| unread(&error, der))?;
    affordable(&info.encryption_algorithm)?;
    match info.decrypt(passphrase.expose()) {
        Ok(document) => Ok(Zeroizing::new(document.as_bytes().to_vec())),
        Err(pkcs8::Error::EncryptedPrivateKey(error)) => Err(refused(&error)),
        // What came out is no DER: another passphrase made it.
        Err(_) => Err(Reason::WrongPassphrase),
    }
}

fn refused(error: &pkcs8::pkcs5::Error) -> Reason {
    use pkcs8::pkcs5::Error as E;
    match error {
        E::DecryptFailed => Reason::WrongPassphrase,
        E::NoPbes1CryptSupport => Reason::Cipher("PBES1, of the nineties".into()),
        E::UnsupportedAlgorithm { oid } => Reason::Cipher(format!("the algorithm {oid}")),
        other => Reason::Cipher(other.to_string()),
    }
}

fn unread(error: &pkcs8::Error, der: &[u8]) -> Reason {
    match error {
        // OpenSSL's `-v1` takes the schemes of PKCS#12 for PKCS#8 too.
        _ if count(&PKCS12_PBE, der) > 0 => Reason::Cipher("PBES1, of the nineties".into()),
        pkcs8::Error::Asn1(error) if matches!(error.kind(), ErrorKind::OidUnknown { .. } | ErrorKind::OidMalformed) => {
            Reason::Cipher("an algorithm that is not known here".into())
        }
        _ => Reason::Damaged,
    }
}

fn count(identifier: &[u8], der: &[u8]) -> usize {
    der.windows(identifier.len()).filter(|window| *window == identifier).count()
}

fn affordable(scheme: &EncryptionScheme) -> Result<(), Reason> {
    let EncryptionScheme::Pbes2(parameters) = scheme else { return Ok(()) };
    match &parameters.kdf {
        Kdf::Pbkdf2(pbkdf2) if pbkdf2.iteration_count <= MOST_ITERATIONS => Ok(()),
        // A cost of nothing makes the crate panic.
        Kdf::Scrypt(scrypt) if scrypt.cost_parameter == 0 => Err(Reason::Damaged),
        Kdf::Scrypt(scrypt) if hashed(scrypt) <= MOST_HASHED => Ok(()),
        _ => Err(Reason::TooCostly),
    }
}

/// The bytes that scrypt fills (RFC 7914 section 2): its memory, once for each lane.
fn hashed(scrypt: &ScryptParams) -> u64 {
    let factors = [scrypt.block_size.into(), scrypt.parallelization.into(), 128];
    factors.into_iter().fold(scrypt.cost_parameter, u64::saturating_mul)
}

/// OpenSSL's default is 2048, and what is recommended today 600,000.
const MOST_ITERATIONS: u32 = 10_000_000;
/// OpenSSL's default takes 16 MiB.
const MOST_HASHED: u64 = 256 << 20;

/// A certificate chain and its key: what a PKCS#12 bundle holds.
pub struct Bundle {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf, as PKCS#8; wiped when it is dropped.
    pub key: Zeroizing<PrivateKeyDer<'static>>,
}

impl Bundle {
    /// Opens it. It must hold one key, with its certificate.
    pub(super) fn open(der: &[u8], passphrase: &Passphrase) -> Result<Self, Reason> {
        plausible(der)?;
        // The crate would say that the file is damaged.
        if passphrase.expose().chars().any(|letter| letter > '\u{ffff}') {
            return Err(Reason::Cipher("a bundle's passphrase with characters beyond U+FFFF".into()));
        }
        let archive = Pkcs12Archive::from_pkcs12(der, passphrase.expose()).map_err(|error| unopened(&error))?;
        let [key] = archive.keys.as_slice() else {
            return Err(if archive.keys.is_empty() { Reason::NoKey } else { Reason::SeveralKeys(archive.keys.len()) });
        };
        let own = |bag: &&CertificateBag| {
            bag.local_key_id.is_some() && bag.local_key_id.as_deref() == key.local_key_id.as_ref().map(AsRef::as_ref)
        };
        let leaf = archive.certs.iter().find(own).or(archive.certs.first()).ok_or(Reason::NoCertificate)?;
        let key_der = PrivatePkcs8KeyDer::from(key.key.as_der().to_vec());
        Ok(Self { chain: chain(leaf, &archive.certs), key: Zeroizing::new(key_der.into()) })
    }
}

/// The crate bounds each derivation of a key (a million iterations), but neither how many a bundle asks for nor scrypt
/// as we do. Told by what stands unencrypted: what is hidden inside is there for those alone who know the passphrase.
fn plausible(der: &[u8]) -> Result<(), Reason> {
    if count(&SCRYPT, der) > 0 {
        return Err(Reason::Cipher("a bundle with scrypt".into()));
    }
    if count(&PBES2, der) + count(&PKCS12_PBE, der) > MOST_ENCRYPTIONS { Err(Reason::TooCostly) } else { Ok(()) }
}

/// A bundle has two: one of its certificates, one of its key.
const MOST_ENCRYPTIONS: usize = 8;
/// id-PBES2 (1.2.840.113549.1.5.13, RFC 8018 appendix A.4).
const PBES2: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
/// What all of pkcs-12PbeIds begin with (1.2.840.113549.1.12.1, RFC 7292 appendix C).
const PKCS12_PBE: [u8; 11] = [0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01];
/// id-scrypt (1.3.6.1.4.1.11591.4.11, RFC 7914 section 7).
const SCRYPT: [u8; 11] = [0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b];

fn unopened(error: &BundleError) -> Reason {
    match error {
        BundleError::MacError(_) | BundleError::UnpadError => Reason::WrongPassphrase,
        // The MAC was good, or there is none, and the padding did not fit.
        BundleError::Pkcs5Error(text) if *text == pkcs8::pkcs5::Error::DecryptFailed.to_string() => {
            Reason::WrongPassphrase
        }
        BundleError::Pkcs5Error(text) => Reason::Cipher(text.clone()),
        // What the crate says of more iterations than it does.
        BundleError::InvalidParameters => Reason::TooCostly,
        BundleError::UnsupportedEncryptionScheme
        | BundleError::UnsupportedMacAlgorithm
        | BundleError::UnsupportedContentType
        | BundleError::UnsupportedCertificateType
        | BundleError::InvalidVersion => Reason::Cipher(error.to_string().to_lowercase()),
        _ => Reason::Damaged,
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// The leaf, and behind each certificate the one that issued it: bundles keep no order.
fn chain(leaf: &CertificateBag, all: &[CertificateBag]) -> Vec<CertificateDer<'static>> {
    let mut chain: Vec<&[u8]> = vec![leaf.cert.as_der()];
    while let Some(issuer) = chain.last().and_then(|last| issuer_of(last, all))
        && !chain.contains(&issuer)
    {
        chain.push(issuer);
    }
    chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect()
}

fn issuer_of<'a>(der: &[u8], all: &'a [CertificateBag]) -> Option<&'a [u8]> {
    let certificate = certificate::parse(der).ok()?;
    let mut others = all.iter().map(|bag| bag.cert.as_der());
    others.find(|other| {
        certificate::parse(other).is_ok_and(|other| other.subject().as_raw() == certificate.issuer().as_raw())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_asks_for_an_hour_of_work_is_refused_at_once() {
        for (kdf, reason) in [
            (pbkdf2(&[0x00, 0x98, 0x96, 0x81]), "TooCostly"),
            (pbkdf2(&[0x7f, 0xff, 0xff, 0xff]), "TooCostly"),
            (pbkdf2(&[0x01, 0x00, 0x00, 0x00, 0x00]), "Damaged"),
            // 1 GiB, 512 MiB in lanes, 16 EiB.
            (scrypt(&[0x10, 0x00, 0x00], &[8], &[8]), "TooCostly"),
            (scrypt(&[0x40, 0x00], &[8], &[32]), "TooCostly"),
            (scrypt(&[0x40, 0, 0, 0, 0, 0, 0, 0], &[0x7f, 0xff], &[0x7f, 0xff]), "TooCostly"),
            (scrypt(&[0], &[8], &[1]), "Damaged"),
            // Not a power of two; and what is allowed, with another passphrase.
            (scrypt(&[3], &[8], &[1]), "Cipher"),
            (scrypt(&[2], &[8], &[1]), "WrongPassphrase"),
        ] {
            let refused = key(&encrypted(&kdf), &passphrase()).unwrap_err();
            assert!(format!("{refused:?}").starts_with(reason), "{kdf:02x?}: {refused:?}");
        }
    }

    /// Each of a million iterations, which the crate does one after the other: their failures stop nothing.
    #[test]
    fn a_bundle_of_many_costly_secrets_is_refused_at_once() {
        let derivation = tlv(0x30, &[&tlv(4, &[b"saltsalt"]), &tlv(2, &[&[0x0f, 0x42, 0x40]])]);
        let identifier = [&PKCS12_PBE[..], &[3]].concat();
        let secret = tlv(0x30, &[&tlv(0x30, &[&identifier, &derivation]), &tlv(4, &[&[7; 16]])]);
        let secret = tlv(0x30, &[SECRET_KIND, &tlv(0xa0, &[&tlv(4, &[&secret])])]);
        let bag = tlv(0x30, &[SECRET_BAG, &tlv(0xa0, &[&secret])]);
        let safe = |bags: usize| tlv(0x30, &[DATA, &tlv(0xa0, &[&tlv(4, &[&tlv(0x30, &[&bag.repeat(bags)])])])]);
        let pfx = |bags| {
            let safes = tlv(0x30, &[&safe(bags)]);
            tlv(0x30, &[&[2, 1, 3], &tlv(0x30, &[DATA, &tlv(0xa0, &[&tlv(4, &[&safes])])])])
        };
        assert!(matches!(Bundle::open(&pfx(40), &passphrase()), Err(Reason::TooCostly)));
        assert!(matches!(Bundle::open(&pfx(0), &passphrase()), Err(Reason::NoKey)));
    }

    #[test]
    fn a_damaged_bundle_is_told_from_a_wrong_passphrase() {
        for bytes in [&b"no bundle"[..], &[], &[0x30, 0x80, 2, 1, 3, 0, 0]] {
            assert!(matches!(Bundle::open(bytes, &passphrase()), Err(Reason::Damaged)));
        }
        let odd = Passphrase::new("\u{1f511}").unwrap();
        assert!(matches!(Bundle::open(&[], &odd), Err(Reason::Cipher(_))));
    }

    fn passphrase() -> Passphrase {
        Passphrase::new("hunter2").unwrap()
    }

    /// An `EncryptedPrivateKeyInfo` of AES-256-CBC around noise.
    fn encrypted(kdf: &[u8]) -> Vec<u8> {
        let cipher = tlv(0x30, &[AES_256_CBC, &tlv(4, &[&[7; 16]])]);
        let algorithm = tlv(0x30, &[&PBES2, &tlv(0x30, &[kdf, &cipher])]);
        tlv(0x30, &[&algorithm, &tlv(4, &[&[7; 160]])])
    }

    fn pbkdf2(iterations: &[u8]) -> Vec<u8> {
        let prf = tlv(0x30, &[HMAC_WITH_SHA256, &[5, 0]]);
        tlv(0x30, &[PBKDF2, &tlv(0x30, &[&tlv(4, &[b"saltsalt"]), &tlv(2, &[iterations]), &prf])])
    }

    fn scrypt(cost: &[u8], block_size: &[u8], lanes: &[u8]) -> Vec<u8> {
        let numbers = [tlv(2, &[cost]), tlv(2, &[block_size]), tlv(2, &[lanes])].concat();
        tlv(0x30, &[&SCRYPT, &tlv(0x30, &[&tlv(4, &[b"saltsalt"]), &numbers])])
    }

    /// One element of DER: tag, length, content.
    fn tlv(tag: u8, content: &[&[u8]]) -> Vec<u8> {
        let content = content.concat();
        let length = content.len().to_be_bytes();
        let head = match content.len() {
            short @ 0..=0x7f => vec![tag, short as u8],
            0x80..=0xff => vec![tag, 0x81, length[7]],
            _ => vec![tag, 0x82, length[6], length[7]],
        };
        [head, content].concat()
    }

    const DATA: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
    const SECRET_BAG: &[u8] = &[0x06, 11, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x05];
    const SECRET_KIND: &[u8] = &[0x06, 3, 0x2a, 0x03, 0x04];
    const AES_256_CBC: &[u8] = &[0x06, 9, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
    const PBKDF2: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
    const HMAC_WITH_SHA256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09];
}
