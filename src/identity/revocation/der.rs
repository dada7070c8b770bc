//! What CRLs and OCSP responses have in common: something signed, times, extensions.

use std::time::SystemTime;

use x509_parser::prelude::{AlgorithmIdentifier, FromDer as _, SubjectPublicKeyInfo};
use yasna::tags::TAG_UTCTIME;
use yasna::{ASN1Result, BERReader, BERReaderSeq};

use super::SignatureError;
use super::signature::verify;

/// What was signed, by which algorithm, and the signature (RFC 5280 section 4.1.1).
pub(super) struct Signed<'a> {
    message: &'a [u8],
    /// DER of AlgorithmIdentifier.
    pub(super) algorithm: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed<'_> {
    /// Whether this key made the signature.
    pub(super) fn verify(&self, key: &SubjectPublicKeyInfo<'_>) -> Result<(), SignatureError> {
        let Ok(([], algorithm)) = AlgorithmIdentifier::from_der(&self.algorithm) else {
            return Err(SignatureError::Algorithm("of no known form".into()));
        };
        verify(key, &algorithm, self.message, &self.signature)
    }
}

/// A sequence of something that is signed, and its signature, with nothing behind it.
pub(super) fn read_signed<'a, T>(
    reader: BERReader<'a, '_>,
    read: impl for<'c> FnOnce(BERReader<'a, 'c>) -> ASN1Result<T>,
) -> ASN1Result<(T, Signed<'a>)> {
    reader.read_sequence(|reader| next_signed(reader, read))
}

/// The same, at the beginning of a sequence that goes on.
pub(super) fn next_signed<'a, T>(
    reader: &mut BERReaderSeq<'a, '_>,
    read: impl for<'c> FnOnce(BERReader<'a, 'c>) -> ASN1Result<T>,
) -> ASN1Result<(T, Signed<'a>)> {
    let (content, message) = reader.next().read_with_buffer(read)?;
    let algorithm = reader.next().read_der()?;
    let (signature, _) = reader.next().read_bitvec_bytes()?;
    Ok((content, Signed { message, algorithm, signature }))
}

/// Time (section 4.1.2.5): UTCTime or GeneralizedTime.
pub(super) fn read_time(reader: BERReader<'_, '_>) -> ASN1Result<SystemTime> {
    if reader.lookahead_tag()? == TAG_UTCTIME {
        return Ok((*reader.read_utctime()?.datetime()).into());
    }
    Ok((*reader.read_generalized_time()?.datetime()).into())
}

/// One extension (section 4.1).
pub(super) struct Extension {
    /// Dotted decimals.
    pub(super) oid: String,
    pub(super) critical: bool,
    pub(super) value: Vec<u8>,
}

pub(super) fn read_extensions(reader: BERReader<'_, '_>) -> ASN1Result<Vec<Extension>> {
    reader.collect_sequence_of(|reader| {
        reader.read_sequence(|reader| {
            let oid = reader.next().read_oid()?.to_string();
            // Some write the default, FALSE, which DER does not allow.
            let critical = reader.read_optional(|reader| reader.read_bool())?;
            Ok(Extension { oid, critical: critical == Some(true), value: reader.next().read_bytes()? })
        })
    })
}
