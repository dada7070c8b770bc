//! OCSP (RFC 6960): the request for one certificate, and what an answer to it says. No nonce: an answer without one
//! would have to be taken all the same, since responders sign ahead (RFC 5019), and its dates bound how old it can be.

use std::time::{Duration, SystemTime};

use thiserror::Error;
use x509_parser::prelude::{SubjectPublicKeyInfo, X509Certificate};
use yasna::models::{ObjectIdentifier, TaggedDerValue};
use yasna::tags::TAG_INTEGER;
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result, BERReader, BERReaderSeq, DERWriter, Tag};

use super::der::{Signed, next_signed, read_extensions, read_time};
use super::{Issued, Issuer, Reason, SKEW, SignatureError, Verdict, sha1, signed_by};
use crate::identity::certificate::{parse, system_time};

impl Issued {
    /// The DER of a request for this certificate (section 4.1.1), unsigned.
    pub fn ocsp_request(&self) -> Vec<u8> {
        yasna::construct_der(|writer| {
            // OCSPRequest, TBSRequest, requestList, Request.
            writer.write_sequence(|writer| {
                writer.next().write_sequence(|writer| {
                    writer.next().write_sequence(|writer| {
                        writer.next().write_sequence(|writer| self.write_id(writer.next()));
                    });
                });
            });
        })
    }

    /// What the DER of an answer says of this certificate at `now`.
    pub fn read_ocsp(&self, der: &[u8], now: SystemTime) -> Result<Verdict, OcspError> {
        let basic = basic(der)?;
        let answer = yasna::parse_der(&basic, Answer::read)?;
        self.trust_answer(&answer, now)?;
        if answer.data.critical {
            return Err(OcspError::Critical);
        }
        let singles = answer.data.singles;
        let single = singles.into_iter().find(|single| self.is_about(&single.id)).ok_or(OcspError::OtherId)?;
        self.judge(&single, now)
    }

    /// CertID, with SHA-1: what every responder knows (RFC 5019 section 2.1.1).
    fn write_id(&self, writer: DERWriter<'_>) {
        writer.write_sequence(|writer| {
            writer.next().write_sequence(|writer| {
                writer.next().write_oid(&ObjectIdentifier::from_slice(SHA1));
                writer.next().write_null();
            });
            writer.next().write_bytes(&self.issuer.name_hash());
            writer.next().write_bytes(&self.issuer.key_hash());
            writer.next().write_tagged_der(&TaggedDerValue::from_tag_and_bytes(TAG_INTEGER, self.serial.clone()));
        });
    }

    fn is_about(&self, id: &Id) -> bool {
        id.algorithm.components() == SHA1
            && id.name_hash == self.issuer.name_hash()
            && id.key_hash == self.issuer.key_hash()
            && id.serial == self.serial
    }

    /// The answer must be signed by the issuer, or by whom the issuer itself has named (section 4.2.2.2).
    fn trust_answer(&self, answer: &Answer<'_>, now: SystemTime) -> Result<(), OcspError> {
        let responder = &answer.data.responder;
        if responder.is(&self.issuer.name, &self.issuer.key()) {
            return answer.signed.verify(&self.issuer.key()).map_err(OcspError::Signature);
        }
        let mut refused = OcspError::UnknownResponder;
        for der in &answer.certificates {
            let Ok(certificate) = parse(der) else { continue };
            if !responder.is(certificate.subject().as_raw(), certificate.public_key()) {
                continue;
            }
            match self.issuer.delegates_to(&certificate, now) {
                Ok(()) => return answer.signed.verify(certificate.public_key()).map_err(OcspError::Signature),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn judge(&self, single: &Single, now: SystemTime) -> Result<Verdict, OcspError> {
        if single.critical {
            return Err(OcspError::Critical);
        }
        if single.this_update > now + SKEW {
            return Err(OcspError::NotYet);
        }
        let until = single.next_update.unwrap_or(single.this_update + UNDATED);
        if until + SKEW < now {
            return Err(OcspError::Stale);
        }
        match single.status {
            Status::Good => Ok(Verdict::Good { until }),
            Status::Revoked { since, reason } => Ok(Verdict::Revoked { since, reason }),
            Status::Unknown => Err(OcspError::Unknown),
        }
    }
}

impl Issuer {
    /// Whether the issuer lets somebody answer in its place. Whether that certificate has itself been revoked is not
    /// asked: most are short-lived and say that nobody need ask (id-pkix-ocsp-nocheck, section 4.2.2.2.1).
    fn delegates_to(&self, responder: &X509Certificate<'_>, now: SystemTime) -> Result<(), OcspError> {
        if responder.issuer().as_raw() != self.name {
            return Err(OcspError::UnknownResponder);
        }
        signed_by(responder, &self.key()).map_err(OcspError::NotDelegated)?;
        if !responder.extended_key_usage().ok().flatten().is_some_and(|usage| usage.value.ocsp_signing) {
            return Err(OcspError::NotForOcsp);
        }
        let validity = responder.validity();
        let (from, until) = (system_time(validity.not_before), system_time(validity.not_after));
        if from <= now + SKEW && now <= until + SKEW { Ok(()) } else { Err(OcspError::ResponderExpired) }
    }
}

/// How long an answer without nextUpdate serves. Its responder has newer ones at any time (section 2.4).
const UNDATED: Duration = Duration::from_secs(24 * 3600);

const SHA1: &[u64] = &[1, 3, 14, 3, 2, 26];
const BASIC: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 1];

/// BasicOCSPResponse (section 4.2.1).
struct Answer<'a> {
    data: Data,
    signed: Signed<'a>,
    certificates: Vec<Vec<u8>>,
}

impl<'a> Answer<'a> {
    fn read(reader: BERReader<'a, '_>) -> ASN1Result<Self> {
        reader.read_sequence(|reader| {
            let (data, signed) = next_signed(reader, read_data)?;
            let certificates = reader.read_optional(|reader| {
                reader.read_tagged(Tag::context(0), |reader| reader.collect_sequence_of(|reader| reader.read_der()))
            })?;
            Ok(Self { data, signed, certificates: certificates.unwrap_or_default() })
        })
    }
}

struct Data {
    responder: Responder,
    singles: Vec<Single>,
    critical: bool,
}

enum Responder {
    /// DER of its name.
    Name(Vec<u8>),
    /// SHA-1 of its key's bits.
    Key(Vec<u8>),
}

impl Responder {
    fn is(&self, name: &[u8], key: &SubjectPublicKeyInfo<'_>) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Key(hash) => *hash == sha1(&key.subject_public_key.data),
        }
    }
}

struct Single {
    id: Id,
    status: Status,
    this_update: SystemTime,
    next_update: Option<SystemTime>,
    critical: bool,
}

struct Id {
    algorithm: ObjectIdentifier,
    name_hash: Vec<u8>,
    key_hash: Vec<u8>,
    serial: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Status {
    Good,
    Revoked { since: SystemTime, reason: Option<Reason> },
    Unknown,
}

/// OCSPResponse to the DER of the basic response in it.
fn basic(der: &[u8]) -> Result<Vec<u8>, OcspError> {
    let (status, bytes) = yasna::parse_der(der, |reader| {
        reader.read_sequence(|reader| {
            let status = reader.next().read_enum()?;
            let bytes = reader.read_optional(|reader| reader.read_tagged(Tag::context(0), read_bytes))?;
            Ok((status, bytes))
        })
    })?;
    match (status, bytes) {
        (0, Some((kind, basic))) if kind.components() == BASIC => Ok(basic),
        (0, _) => Err(OcspError::Malformed),
        (status, _) => Err(OcspError::Refused(refusal(status))),
    }
}

/// OCSPResponseStatus (section 4.2.1) in its own words.
fn refusal(status: i64) -> &'static str {
    match status {
        1 => "malformedRequest",
        2 => "internalError",
        3 => "tryLater",
        5 => "sigRequired",
        6 => "unauthorized",
        _ => "a status that RFC 6960 does not know",
    }
}

fn read_bytes(reader: BERReader<'_, '_>) -> ASN1Result<(ObjectIdentifier, Vec<u8>)> {
    reader.read_sequence(|reader| Ok((reader.next().read_oid()?, reader.next().read_bytes()?)))
}

/// ResponseData. Its version can only be 1, where it stands at all.
fn read_data(reader: BERReader<'_, '_>) -> ASN1Result<Data> {
    reader.read_sequence(|reader| {
        let version = reader.read_optional(|reader| reader.read_tagged(Tag::context(0), |reader| reader.read_u8()))?;
        if version.is_some_and(|version| version != 0) {
            return Err(ASN1Error::new(ASN1ErrorKind::Invalid));
        }
        let responder = read_responder(reader.next())?;
        // producedAt: thisUpdate is what counts.
        reader.next().read_generalized_time()?;
        let singles = reader.next().collect_sequence_of(read_single)?;
        Ok(Data { responder, singles, critical: read_critical(reader)? })
    })
}

fn read_responder(reader: BERReader<'_, '_>) -> ASN1Result<Responder> {
    if reader.lookahead_tag()? == Tag::context(1) {
        return reader.read_tagged(Tag::context(1), |reader| reader.read_der()).map(Responder::Name);
    }
    reader.read_tagged(Tag::context(2), |reader| reader.read_bytes()).map(Responder::Key)
}

fn read_single(reader: BERReader<'_, '_>) -> ASN1Result<Single> {
    reader.read_sequence(|reader| {
        let id = read_id(reader.next())?;
        let status = read_status(reader.next())?;
        let this_update = read_time(reader.next())?;
        let next_update = reader.read_optional(|reader| reader.read_tagged(Tag::context(0), read_time))?;
        Ok(Single { id, status, this_update, next_update, critical: read_critical(reader)? })
    })
}

fn read_id(reader: BERReader<'_, '_>) -> ASN1Result<Id> {
    reader.read_sequence(|reader| {
        let algorithm = reader.next().read_sequence(|reader| {
            let algorithm = reader.next().read_oid()?;
            reader.read_optional(|reader| reader.read_null())?;
            Ok(algorithm)
        })?;
        let (name_hash, key_hash) = (reader.next().read_bytes()?, reader.next().read_bytes()?);
        let serial = reader.next().read_tagged_der()?;
        Ok(Id { algorithm, name_hash, key_hash, serial: serial.value().to_vec() })
    })
}

fn read_status(reader: BERReader<'_, '_>) -> ASN1Result<Status> {
    match reader.lookahead_tag()? {
        tag if tag == Tag::context(0) => {
            reader.read_tagged_implicit(tag, |reader| reader.read_null()).map(|()| Status::Good)
        }
        tag if tag == Tag::context(1) => reader.read_tagged_implicit(tag, |reader| {
            reader.read_sequence(|reader| {
                let since = read_time(reader.next())?;
                let reason =
                    reader.read_optional(|reader| reader.read_tagged(Tag::context(0), |reader| reader.read_enum()))?;
                let reason = reason.and_then(|code| u8::try_from(code).ok()).map(Reason);
                Ok(Status::Revoked { since, reason })
            })
        }),
        tag => {
            let unknown = Tag::context(2);
            if tag != unknown {
                return Err(ASN1Error::new(ASN1ErrorKind::Invalid));
            }
            reader.read_tagged_implicit(unknown, |reader| reader.read_null()).map(|()| Status::Unknown)
        }
    }
}

/// Whether among the extensions, `[1]` at the end of a sequence, is one that must be understood: none is here.
fn read_critical(reader: &mut BERReaderSeq<'_, '_>) -> ASN1Result<bool> {
    let extensions = reader.read_optional(|reader| reader.read_tagged(Tag::context(1), read_extensions))?;
    Ok(extensions.is_some_and(|extensions| extensions.iter().any(|extension| extension.critical)))
}

/// Why an answer says nothing of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OcspError {
    /// Not the DER of an answer.
    #[error("the answer is not an OCSP response")]
    Malformed,
    /// The responder's own error, which nobody signs.
    #[error("the OCSP responder refused to answer: {0}")]
    Refused(&'static str),
    /// It knows nothing of it.
    #[error("the OCSP responder does not know the certificate")]
    Unknown,
    /// An answer to another question.
    #[error("the OCSP response is about another certificate")]
    OtherId,
    /// Somebody whom the issuer has not named.
    #[error("the OCSP response is neither by the certificate's issuer nor by a responder that the issuer named")]
    UnknownResponder,
    /// The certificate of the responder has the issuer's name only.
    #[error("the OCSP responder's certificate is not signed by the certificate's issuer")]
    NotDelegated(#[source] SignatureError),
    /// id-kp-OCSPSigning is missing (section 4.2.2.2).
    #[error("the OCSP responder's certificate is not for signing OCSP responses (extendedKeyUsage)")]
    NotForOcsp,
    /// Or not valid yet.
    #[error("the OCSP responder's certificate is not valid now")]
    ResponderExpired,
    /// Not by whom it claims.
    #[error("the OCSP response is not signed by the responder that it names")]
    Signature(#[source] SignatureError),
    /// thisUpdate lies ahead.
    #[error("the OCSP response is of the future: check this machine's clock")]
    NotYet,
    /// nextUpdate lies behind.
    #[error("the OCSP response is out of date")]
    Stale,
    /// It may change the meaning.
    #[error("the OCSP response has a critical extension, which is not supported")]
    Critical,
}

impl From<ASN1Error> for OcspError {
    fn from(_: ASN1Error) -> Self {
        Self::Malformed
    }
}
