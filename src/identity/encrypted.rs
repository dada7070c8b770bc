//! Opens encrypted private keys (PKCS#8, RFC 5958 section 3, with PBES2 of RFC 8018) and PKCS#12 bundles (RFC 7292). What
//! they cost is bounded: a file that asks for an hour of key derivation is refused. Must not know files.

use p12_keystore::error::Error as BundleError;
use p12_keystore::{CertificateBag, Pkcs12Archive};
use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::certificate;
use super::passphrase::Passphrase;
use super::pem::Reason;

/// The DER of the key within an `EncryptedPrivateKeyInfo`.
pub(super) fn key(der: &[u8], passphrase: &Passphrase) -> Result<Zeroizing<Vec<u8>>, Reason> {
    let info = EncryptedPrivateKeyInfoRef::try_from(der)
        .map_err(|error| Reason::Cipher(format!("its encryption cannot be read: {error}")))?;
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

fn affordable(scheme: &EncryptionScheme) -> Result<(), Reason> {
    let EncryptionScheme::Pbes2(parameters) = scheme else { return Ok(()) };
    let is_affordable = match &parameters.kdf {
        Kdf::Pbkdf2(pbkdf2) => pbkdf2.iteration_count <= MOST_ITERATIONS,
        Kdf::Scrypt(scrypt) => {
            let memory = scrypt.cost_parameter.saturating_mul(128).saturating_mul(scrypt.block_size.into());
            memory <= MOST_MEMORY && scrypt.parallelization <= 16
        }
        _ => true,
    };
    if is_affordable { Ok(()) } else { Err(Reason::TooCostly) }
}

/// OpenSSL's default is 2048, and what is recommended today 600,000.
const MOST_ITERATIONS: u32 = 10_000_000;
/// Of scrypt. OpenSSL's default takes 16 MiB.
const MOST_MEMORY: u64 = 256 << 20;

/// What a PKCS#12 bundle holds.
pub(super) struct Bundle {
    /// Leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl Bundle {
    /// Opens it. It must hold one key, with its certificate.
    pub(super) fn open(der: &[u8], passphrase: &Passphrase) -> Result<Self, Reason> {
        let archive = Pkcs12Archive::from_pkcs12(der, passphrase.expose()).map_err(|error| match error {
            BundleError::MacError(_) | BundleError::UnpadError => Reason::WrongPassphrase,
            other => Reason::Cipher(other.to_string()),
        })?;
        let [key] = archive.keys.as_slice() else {
            return Err(if archive.keys.is_empty() { Reason::NoKey } else { Reason::SeveralKeys(archive.keys.len()) });
        };
        let own = |bag: &&CertificateBag| {
            bag.local_key_id.is_some() && bag.local_key_id.as_deref() == key.local_key_id.as_ref().map(AsRef::as_ref)
        };
        let leaf = archive.certs.iter().find(own).or(archive.certs.first()).ok_or(Reason::NoCertificate)?;
        Ok(Self { chain: chain(leaf, &archive.certs), key: Zeroizing::new(key.key.as_der().to_vec()) })
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
