//! Certificate revocation lists (RFC 5280 section 5): complete ones of the certificate's own issuer. Delta and indirect
//! lists are refused in words, never half understood.

use std::time::SystemTime;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;
use x509_parser::extensions::IssuingDistributionPoint;
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Extension};
use yasna::{ASN1Result, BERReader, Tag};

use super::der::{Extension, Signed, read_extensions, read_signed, read_time};
use super::{Issued, Reason, SKEW, SignatureError, Verdict, urls};

/// The lists in the content of a file, DER each: PEM with any text around, or one list in DER. At least one.
pub fn crls(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CrlError> {
    // A DER sequence of 128 bytes or more, as every signed list is; text has no second byte like that.
    if let [0x30, 0x80..=0xff, ..] = bytes {
        return Ok(vec![bytes.to_vec()]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(bytes).map(|list| list.map(|list| list.to_vec()));
    let lists: Vec<_> = lists.collect::<Result<_, _>>().map_err(|_| CrlError::Pem)?;
    if lists.is_empty() { Err(CrlError::NoList) } else { Ok(lists) }
}

impl Issued {
    /// What a list says of this certificate at `now`. An error for which [`CrlError::concerns_others`] holds is no
    /// fault of the list. Takes little memory beyond the list itself, however many entries it has.
    pub fn read_crl(&self, der: &[u8], now: SystemTime) -> Result<Verdict, CrlError> {
        let list = yasna::parse_der(der, |reader| read_signed(reader, |reader| List::read(reader, &self.serial)));
        let (list, signed) = list.map_err(|_| CrlError::Malformed)?;
        self.trust_list(&list, &signed)?;
        let extensions = parsed(&list.extensions)?;
        self.judge_scope(scope(&extensions)?)?;
        let until = list.current(now)?;
        match (list.entries.fault, list.entries.ours) {
            (Some(fault), _) => Err(fault),
            (None, Some(revoked)) => Ok(revoked),
            (None, None) => Ok(Verdict::Good { until }),
        }
    }

    fn trust_list(&self, list: &List, signed: &Signed<'_>) -> Result<(), CrlError> {
        if list.issuer != self.issuer.name {
            return Err(CrlError::OtherIssuer);
        }
        if !self.issuer.signs_crls {
            return Err(CrlError::NotAllowed);
        }
        if list.algorithm != signed.algorithm {
            return Err(CrlError::Malformed);
        }
        Ok(signed.verify(&self.issuer.key())?)
    }

    /// Whether the list speaks of this certificate (section 6.3.3 (b)). Providers cut their lists into pieces: what is
    /// absent from another piece is not good.
    fn judge_scope(&self, scope: Option<&IssuingDistributionPoint<'_>>) -> Result<(), CrlError> {
        let Some(scope) = scope else { return Ok(()) };
        if scope.indirect_crl {
            return Err(CrlError::Indirect);
        }
        if scope.only_some_reasons.is_some() {
            return Err(CrlError::SomeReasons);
        }
        if scope.only_contains_ca_certs || scope.only_contains_attribute_certs {
            return Err(CrlError::OtherScope);
        }
        match &scope.distribution_point {
            Some(name) if !urls(name).iter().any(|url| self.points.contains(url)) => Err(CrlError::OtherScope),
            _ => Ok(()),
        }
    }
}

/// TBSCertList (section 5.1.2), as far as it says something of one certificate.
struct List {
    /// DER.
    algorithm: Vec<u8>,
    /// DER.
    issuer: Vec<u8>,
    this_update: SystemTime,
    next_update: Option<SystemTime>,
    entries: Entries,
    /// The content of the sequence, without its head.
    extensions: Vec<u8>,
}

impl List {
    fn read(reader: BERReader<'_, '_>, serial: &[u8]) -> ASN1Result<Self> {
        reader.read_sequence(|reader| {
            // Whether it says 2 or nothing makes no difference here.
            reader.read_optional(|reader| reader.read_u8())?;
            let (algorithm, issuer) = (reader.next().read_der()?, reader.next().read_der()?);
            let (this_update, next_update) = (read_time(reader.next())?, reader.read_optional(read_time)?);
            let mut entries = Entries::default();
            reader.read_optional(|reader| reader.read_sequence_of(|reader| entries.read(reader, serial)))?;
            let extensions = reader.read_optional(|reader| {
                reader.read_tagged(Tag::context(0), |reader| Ok(reader.read_tagged_der()?.value().to_vec()))
            })?;
            let extensions = extensions.unwrap_or_default();
            Ok(Self { algorithm, issuer, this_update, next_update, entries, extensions })
        })
    }

    /// Until when the list holds.
    fn current(&self, now: SystemTime) -> Result<SystemTime, CrlError> {
        if self.this_update > now + SKEW {
            return Err(CrlError::NotYet);
        }
        let until = self.next_update.ok_or(CrlError::NoEnd)?;
        if until + SKEW < now { Err(CrlError::Stale) } else { Ok(until) }
    }
}

/// What the entries come to, read one by one and not kept.
#[derive(Default)]
struct Entries {
    ours: Option<Verdict>,
    /// A list with an entry that is not understood is not to be used at all (section 5.3).
    fault: Option<CrlError>,
}

impl Entries {
    fn read(&mut self, reader: BERReader<'_, '_>, serial: &[u8]) -> ASN1Result<()> {
        reader.read_sequence(|reader| {
            let found = reader.next().read_tagged_der()?;
            let since = read_time(reader.next())?;
            let extensions = reader.read_optional(read_extensions)?.unwrap_or_default();
            if let Some(fault) = extensions.iter().find_map(not_understood) {
                self.fault = Some(fault);
            }
            if found.value() == serial {
                let reason = extensions.iter().find_map(reason);
                self.ours = Some(Verdict::Revoked { since, reason });
            }
            Ok(())
        })
    }
}

fn not_understood(extension: &Extension) -> Option<CrlError> {
    match &*extension.oid {
        CERTIFICATE_ISSUER => Some(CrlError::Indirect),
        REASON_CODE | INVALIDITY_DATE => None,
        oid => extension.critical.then(|| CrlError::Critical(oid.to_owned())),
    }
}

fn reason(extension: &Extension) -> Option<Reason> {
    let code = || yasna::parse_der(&extension.value, |reader| reader.read_enum()).ok();
    if extension.oid == REASON_CODE { u8::try_from(code()?).ok().map(Reason) } else { None }
}

const REASON_CODE: &str = "2.5.29.21";
const INVALIDITY_DATE: &str = "2.5.29.24";
const DELTA: &str = "2.5.29.27";
const CERTIFICATE_ISSUER: &str = "2.5.29.29";

/// The extensions of a list.
fn parsed(mut der: &[u8]) -> Result<Vec<X509Extension<'_>>, CrlError> {
    let mut extensions = Vec::new();
    while !der.is_empty() {
        let (rest, extension) = X509Extension::from_der(der).map_err(|_| CrlError::Malformed)?;
        extensions.push(extension);
        der = rest;
    }
    Ok(extensions)
}

/// The issuing distribution point; refuses whatever changes the meaning of a list and is not understood (section 5.2).
fn scope<'a>(extensions: &'a [X509Extension<'a>]) -> Result<Option<&'a IssuingDistributionPoint<'a>>, CrlError> {
    let mut scope = None;
    for extension in extensions {
        match extension.parsed_extension() {
            ParsedExtension::IssuingDistributionPoint(point) => scope = Some(point),
            ParsedExtension::AuthorityKeyIdentifier(_) | ParsedExtension::CRLNumber(_) => {}
            _ if extension.oid.to_id_string() == DELTA => return Err(CrlError::Delta),
            _ if extension.critical => return Err(CrlError::Critical(extension.oid.to_id_string())),
            _ => {}
        }
    }
    Ok(scope)
}

/// Why a list says nothing of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CrlError {
    /// A PEM block that is damaged.
    #[error("the file holds a PEM block that cannot be read")]
    Pem,
    /// Neither DER nor a block `X509 CRL`.
    #[error("there is no CRL in the file")]
    NoList,
    /// Not the DER of a list, or not of one alone.
    #[error("not an X.509 CRL")]
    Malformed,
    /// Of another authority.
    #[error("the CRL is another issuer's")]
    OtherIssuer,
    /// Of the issuer, about other certificates.
    #[error("the CRL is about other certificates of the issuer")]
    OtherScope,
    /// The issuer's certificate does not let it.
    #[error("the issuer's certificate is not for signing CRLs (keyUsage)")]
    NotAllowed,
    /// Not the issuer's, whatever it says.
    #[error("the CRL is not signed by the certificate's issuer")]
    Signature(#[from] SignatureError),
    /// Only what has changed.
    #[error("the CRL is a delta CRL, which is not supported: name the complete one")]
    Delta,
    /// With entries of several issuers.
    #[error("the CRL is an indirect CRL, which is not supported: name the one of the certificate's issuer")]
    Indirect,
    /// Silent about some revocations.
    #[error("the CRL lists some reasons of revocation only: name the one for all reasons")]
    SomeReasons,
    /// By its object identifier.
    #[error("the CRL has the critical extension {0}, which is not supported")]
    Critical(String),
    /// thisUpdate lies ahead.
    #[error("the CRL is of the future: check this machine's clock")]
    NotYet,
    /// nextUpdate lies behind.
    #[error("the CRL is out of date: its next update has passed")]
    Stale,
    /// RFC 5280 section 5.1.2.5 demands one.
    #[error("the CRL does not say when the next one comes")]
    NoEnd,
}

impl CrlError {
    /// Whether the list is sound, as far as was looked, and simply not about this certificate.
    pub fn concerns_others(&self) -> bool {
        matches!(self, Self::OtherIssuer | Self::OtherScope)
    }

    /// One stable word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Pem | Self::NoList | Self::Malformed => "unreadable-crl",
            Self::OtherIssuer | Self::OtherScope => "unrelated-crl",
            Self::NotYet | Self::Stale | Self::NoEnd => "crl-out-of-date",
            Self::NotAllowed | Self::Signature(_) => "untrusted-crl",
            Self::Delta | Self::Indirect | Self::SomeReasons | Self::Critical(_) => "unsupported-crl",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Pem | Self::NoList | Self::Malformed => {
                "fetch the list again, in DER or as a block `X509 CRL`; `openssl crl -in FILE -noout -text` shows what it is"
            }
            Self::OtherIssuer | Self::OtherScope => "name the list that the certificate names itself",
            Self::NotYet => "set this machine's clock",
            Self::Stale | Self::NoEnd => "fetch the list again, each time before its next update",
            Self::NotAllowed | Self::Signature(_) => "fetch the list again from where the certificate says",
            Self::Delta | Self::Indirect | Self::SomeReasons | Self::Critical(_) => {
                "ask the issuer for a complete list of its own, or write `ocsp: true`"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_as_der_or_pem() {
        assert_eq!(crls(&[0x30, 0x81, 0]), Ok(vec![vec![0x30, 0x81, 0]]));
        let pem = "0 text\n-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
        assert_eq!(crls(pem.repeat(2).as_bytes()), Ok(vec![vec![0x30, 0]; 2]));
        assert_eq!(crls(b""), Err(CrlError::NoList));
        assert_eq!(crls(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"), Err(CrlError::NoList));
        assert_eq!(crls(b"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----\n"), Err(CrlError::Pem));
    }
}
