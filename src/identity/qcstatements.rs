//! The qcStatements extension (RFC 3739 section 3.2.6), both directions: the statements of EN 319 412-5 and the
//! PSD2 statement of TS 119 495. Must not know certificates: it sees the value of one extension.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use thiserror::Error;
use yasna::models::ObjectIdentifier;
use yasna::tags::{TAG_IA5STRING, TAG_PRINTABLESTRING, TAG_UTF8STRING};
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result, BERReader, DERWriter, DERWriterSeq};

/// The extension's own identifier: `id-pe-qcStatements`.
pub const EXTENSION: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 3];

/// What a qualified certificate states about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QcStatements {
    /// QcCompliance: the certificate is a qualified one (EN 319 412-5 section 4.2.1).
    pub compliance: bool,
    /// QcType: what it is for (section 4.2.3). Of several, the first.
    pub qc_type: Option<QcType>,
    /// QcSSCD: the key lives in a qualified device (section 4.2.2).
    pub sscd: bool,
    /// The payment service provider's roles and authority (TS 119 495 section 5.1).
    pub psd2: Option<Psd2>,
    /// QcPDS: URLs of the disclosure statement, each with its ISO 639-1 language (EN 319 412-5 section 4.3.4).
    /// URLs are ASCII.
    pub pds: Vec<(String, String)>,
    /// Statements that are none of these; what they contain is not kept.
    pub others: Vec<Oid>,
}

/// What a qualified certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QcType {
    /// Electronic signatures of a person.
    ESign,
    /// Electronic seals of an organisation: a QSealC.
    ESeal,
    /// Website authentication: a QWAC.
    Web,
    /// A purpose that the standard does not name.
    Other(Oid),
}

/// What TS 119 495 adds for payment service providers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Psd2 {
    /// What the competent authority lets the provider do.
    pub roles: Vec<Role>,
    /// The competent authority's name, such as "Autorité de contrôle prudentiel et de résolution".
    pub nca_name: String,
    /// Its country and code, such as `FR-ACPR`.
    pub nca_id: String,
}

/// A role under PSD2. A known identifier decides alone: a name that contradicts it is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// `PSP_AS`
    AccountServicing,
    /// `PSP_PI`
    PaymentInitiation,
    /// `PSP_AI`
    AccountInformation,
    /// `PSP_IC`
    CardIssuing,
    /// A role that this list does not have.
    Other {
        /// Its identifier.
        oid: Oid,
        /// Its name.
        name: String,
    },
}

impl QcStatements {
    /// Reads the value of the extension, a DER `QCStatements`. Statements that are not known here do not fail.
    pub fn decode(der: &[u8]) -> Result<Self, Error> {
        let mut statements = Self::default();
        let list = yasna::parse_der(der, |reader| reader.collect_sequence_of(read_statement));
        for (oid, info) in list.map_err(|_| Error::List)? {
            statements.add(&oid, info.as_deref())?;
        }
        Ok(statements)
    }

    /// Writes the value of the extension. A statement in `others` is written without content.
    pub fn encode(&self) -> Vec<u8> {
        yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                if self.compliance {
                    write_statement(writer, COMPLIANCE, None::<fn(DERWriter<'_>)>);
                }
                if self.sscd {
                    write_statement(writer, SSCD, None::<fn(DERWriter<'_>)>);
                }
                if !self.pds.is_empty() {
                    write_statement(writer, PDS, Some(|writer: DERWriter<'_>| write_pds(writer, &self.pds)));
                }
                if let Some(kind) = &self.qc_type {
                    write_statement(writer, TYPE, Some(|writer: DERWriter<'_>| kind.write(writer)));
                }
                if let Some(psd2) = &self.psd2 {
                    write_statement(writer, PSD2, Some(|writer: DERWriter<'_>| psd2.write(writer)));
                }
                for oid in &self.others {
                    write_statement(writer, oid.identifier().components(), None::<fn(DERWriter<'_>)>);
                }
            });
        })
    }

    fn add(&mut self, oid: &ObjectIdentifier, info: Option<&[u8]>) -> Result<(), Error> {
        match oid.components().as_slice() {
            COMPLIANCE => self.compliance = true,
            SSCD => self.sscd = true,
            TYPE => self.qc_type = Some(parse("QcType", info, QcType::read)?),
            PDS => self.pds = parse("QcPDS", info, |reader| reader.collect_sequence_of(read_location))?,
            PSD2 => self.psd2 = Some(parse("PSD2", info, Psd2::read)?),
            _ => self.others.push(Oid::of(oid)),
        }
        Ok(())
    }
}

impl QcType {
    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method itself is not general over lifetimes")]
    fn read(reader: BERReader<'_, '_>) -> ASN1Result<Self> {
        let kinds = reader.collect_sequence_of(|reader| reader.read_oid())?;
        let Some(first) = kinds.first() else { return Err(ASN1Error::new(ASN1ErrorKind::Invalid)) };
        Ok(match first.components().as_slice() {
            ESIGN => Self::ESign,
            ESEAL => Self::ESeal,
            WEB => Self::Web,
            _ => Self::Other(Oid::of(first)),
        })
    }

    fn write(&self, writer: DERWriter<'_>) {
        let oid = match self {
            Self::ESign => ObjectIdentifier::from_slice(ESIGN),
            Self::ESeal => ObjectIdentifier::from_slice(ESEAL),
            Self::Web => ObjectIdentifier::from_slice(WEB),
            Self::Other(oid) => oid.identifier(),
        };
        writer.write_sequence(|writer| writer.next().write_oid(&oid));
    }
}

impl Psd2 {
    fn read(reader: BERReader<'_, '_>) -> ASN1Result<Self> {
        reader.read_sequence(|reader| {
            Ok(Self {
                roles: reader.next().collect_sequence_of(Role::read)?,
                nca_name: read_text(reader.next())?,
                nca_id: read_text(reader.next())?,
            })
        })
    }

    fn write(&self, writer: DERWriter<'_>) {
        writer.write_sequence(|writer| {
            writer.next().write_sequence_of(|writer| self.roles.iter().for_each(|role| role.write(writer.next())));
            writer.next().write_utf8_string(&self.nca_name);
            writer.next().write_utf8_string(&self.nca_id);
        });
    }
}

impl Role {
    /// The name that TS 119 495 gives it, such as `PSP_AI`.
    pub fn name(&self) -> &str {
        match self {
            Self::AccountServicing => "PSP_AS",
            Self::PaymentInitiation => "PSP_PI",
            Self::AccountInformation => "PSP_AI",
            Self::CardIssuing => "PSP_IC",
            Self::Other { name, .. } => name,
        }
    }

    /// The role of a name that TS 119 495 gives.
    pub fn named(name: &str) -> Option<Self> {
        let known = [Self::AccountServicing, Self::PaymentInitiation, Self::AccountInformation, Self::CardIssuing];
        known.into_iter().find(|role| role.name() == name)
    }

    fn identifier(&self) -> ObjectIdentifier {
        ObjectIdentifier::from_slice(match self {
            Self::AccountServicing => ACCOUNT_SERVICING,
            Self::PaymentInitiation => PAYMENT_INITIATION,
            Self::AccountInformation => ACCOUNT_INFORMATION,
            Self::CardIssuing => CARD_ISSUING,
            Self::Other { oid, .. } => return oid.identifier(),
        })
    }

    fn read(reader: BERReader<'_, '_>) -> ASN1Result<Self> {
        let (oid, name) = reader.read_sequence(|reader| Ok((reader.next().read_oid()?, read_text(reader.next())?)))?;
        Ok(match oid.components().as_slice() {
            ACCOUNT_SERVICING => Self::AccountServicing,
            PAYMENT_INITIATION => Self::PaymentInitiation,
            ACCOUNT_INFORMATION => Self::AccountInformation,
            CARD_ISSUING => Self::CardIssuing,
            _ => Self::Other { oid: Oid::of(&oid), name },
        })
    }

    fn write(&self, writer: DERWriter<'_>) {
        writer.write_sequence(|writer| {
            writer.next().write_oid(&self.identifier());
            writer.next().write_utf8_string(self.name());
        });
    }
}

/// An object identifier in dotted decimals, legal and encodable by construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oid(String);

impl Oid {
    fn of(identifier: &ObjectIdentifier) -> Self {
        Self(identifier.to_string())
    }

    fn identifier(&self) -> ObjectIdentifier {
        self.0.parse().expect("it was read from DER or checked by from_str")
    }
}

impl Deref for Oid {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Oid {
    type Err = Error;

    /// Takes two or more arcs below 2^32, the first two as X.660 allows them.
    fn from_str(text: &str) -> Result<Self, Error> {
        let arcs: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        match arcs.map_err(|_| Error::Oid)?.as_slice() {
            arcs @ ([0 | 1, 0..=39, ..] | [2, _, ..]) => {
                Ok(Self::of(&ObjectIdentifier::new(arcs.iter().copied().map(u64::from).collect())))
            }
            _ => Err(Error::Oid),
        }
    }
}

/// Why bytes are not qcStatements.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The list of statements is not DER.
    #[error("the list of qcStatements is malformed")]
    List,
    /// A statement of a known kind does not have the form of its kind.
    #[error("the {0} statement is malformed")]
    Statement(&'static str),
    /// A text is no object identifier.
    #[error("not an object identifier")]
    Oid,
}

#[expect(clippy::redundant_closure_for_method_calls, reason = "the method itself is not general over lifetimes")]
fn read_statement(reader: BERReader<'_, '_>) -> ASN1Result<(ObjectIdentifier, Option<Vec<u8>>)> {
    reader.read_sequence(|reader| Ok((reader.next().read_oid()?, reader.read_optional(|reader| reader.read_der())?)))
}

fn parse<T>(
    statement: &'static str,
    info: Option<&[u8]>,
    read: impl for<'a, 'b> FnOnce(BERReader<'a, 'b>) -> ASN1Result<T>,
) -> Result<T, Error> {
    yasna::parse_der(info.unwrap_or_default(), read).map_err(|_| Error::Statement(statement))
}

/// Any of the ASCII-compatible string types: issuers differ from the standard's choice.
fn read_text(reader: BERReader<'_, '_>) -> ASN1Result<String> {
    match reader.lookahead_tag()? {
        TAG_PRINTABLESTRING => reader.read_printable_string(),
        TAG_IA5STRING => reader.read_ia5_string(),
        _ => reader.read_utf8string(),
    }
}

fn read_location(reader: BERReader<'_, '_>) -> ASN1Result<(String, String)> {
    reader.read_sequence(|reader| Ok((read_text(reader.next())?, read_text(reader.next())?)))
}

fn write_statement(writer: &mut DERWriterSeq<'_>, oid: &[u64], info: Option<impl FnOnce(DERWriter<'_>)>) {
    writer.next().write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if let Some(write) = info {
            write(writer.next());
        }
    });
}

fn write_pds(writer: DERWriter<'_>, pds: &[(String, String)]) {
    writer.write_sequence_of(|writer| {
        for (url, language) in pds {
            writer.next().write_sequence(|writer| {
                write_text(writer.next(), TAG_IA5STRING, url);
                write_text(writer.next(), TAG_PRINTABLESTRING, language);
            });
        }
    });
}

/// Writes a string of an ASCII type. Where the text holds a character that the type lacks, UTF8String keeps the DER
/// legal.
fn write_text(writer: DERWriter<'_>, tag: yasna::Tag, text: &str) {
    let legal = |byte: u8| match tag {
        TAG_PRINTABLESTRING => byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte),
        _ => byte.is_ascii(),
    };
    let tag = if text.bytes().all(legal) { tag } else { TAG_UTF8STRING };
    writer.write_tagged_implicit(tag, |writer| writer.write_bytes(text.as_bytes()));
}

const COMPLIANCE: &[u64] = &[0, 4, 0, 1862, 1, 1];
const SSCD: &[u64] = &[0, 4, 0, 1862, 1, 4];
const PDS: &[u64] = &[0, 4, 0, 1862, 1, 5];
const TYPE: &[u64] = &[0, 4, 0, 1862, 1, 6];
const ESIGN: &[u64] = &[0, 4, 0, 1862, 1, 6, 1];
const ESEAL: &[u64] = &[0, 4, 0, 1862, 1, 6, 2];
const WEB: &[u64] = &[0, 4, 0, 1862, 1, 6, 3];
const PSD2: &[u64] = &[0, 4, 0, 19495, 2];
const ACCOUNT_SERVICING: &[u64] = &[0, 4, 0, 19495, 1, 1];
const PAYMENT_INITIATION: &[u64] = &[0, 4, 0, 19495, 1, 2];
const ACCOUNT_INFORMATION: &[u64] = &[0, 4, 0, 19495, 1, 3];
const CARD_ISSUING: &[u64] = &[0, 4, 0, 19495, 1, 4];

#[cfg(test)]
mod tests {
    use super::*;

    /// The PSD2 statement of a public production certificate of Tink AB, decoded in protocol.md section 5.1.
    const TINK: &str = "30640606040081982702305a302630110607040081982701030c065053505f414930110607040081982701020c0\
                        65053505f50490c27537765646973682046696e616e6369616c205375706572766973696f6e20417574686f7269\
                        74790c0753452d46494e41";

    fn tink() -> Vec<u8> {
        let statement = (0..TINK.len()).step_by(2).map(|at| u8::from_str_radix(&TINK[at..at + 2], 16).unwrap());
        [0x30, 0x66].into_iter().chain(statement).collect()
    }

    fn full() -> QcStatements {
        QcStatements {
            compliance: true,
            qc_type: Some(QcType::ESeal),
            sscd: true,
            psd2: Some(Psd2 {
                roles: vec![
                    Role::AccountServicing,
                    Role::PaymentInitiation,
                    Role::AccountInformation,
                    Role::CardIssuing,
                    Role::Other { oid: "0.4.0.19495.1.0".parse().unwrap(), name: "Unspecified".into() },
                ],
                nca_name: "Autorité de contrôle prudentiel et de résolution".into(),
                nca_id: "FR-ACPR".into(),
            }),
            pds: vec![("https://pki.example/pds".into(), "en".into())],
            others: vec!["1.3.6.1.5.5.7.11.2".parse().unwrap(), "2.999.4294967295".parse().unwrap()],
        }
    }

    #[test]
    fn a_real_psd2_statement_decodes() {
        let statements = QcStatements::decode(&tink()).unwrap();
        let expected = Psd2 {
            roles: vec![Role::AccountInformation, Role::PaymentInitiation],
            nca_name: "Swedish Financial Supervision Authority".into(),
            nca_id: "SE-FINA".into(),
        };
        assert_eq!(statements, QcStatements { psd2: Some(expected), ..QcStatements::default() });
        assert_eq!(statements.encode(), tink());
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        for qc_type in [QcType::ESign, QcType::ESeal, QcType::Web, QcType::Other("1.2.3".parse().unwrap())] {
            let statements = QcStatements { qc_type: Some(qc_type), ..full() };
            assert_eq!(QcStatements::decode(&statements.encode()).as_ref(), Ok(&statements));
        }
        let empty = QcStatements::default();
        assert_eq!(QcStatements::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn an_unknown_statement_is_kept_by_its_identifier() {
        // QcRetentionPeriod, 10 years.
        let der = [0x30, 0x0d, 0x30, 0x0b, 6, 6, 4, 0, 0x8e, 0x46, 1, 3, 2, 1, 10];
        let statements = QcStatements::decode(&der).unwrap();
        assert_eq!(statements.others, ["0.4.0.1862.1.3".parse().unwrap()]);
    }

    #[test]
    fn truncated_and_damaged_bytes_are_errors_and_never_panics() {
        let der = full().encode();
        for end in 0..der.len() {
            assert!(QcStatements::decode(&der[..end]).is_err(), "{end}");
        }
        for at in 0..der.len() {
            for value in 0..=255 {
                let mut damaged = der.clone();
                damaged[at] = value;
                if let Ok(statements) = QcStatements::decode(&damaged) {
                    statements.encode();
                }
            }
        }
    }

    #[test]
    fn a_known_statement_of_the_wrong_form_is_named() {
        // QcType without content.
        let der = [0x30, 0x0a, 0x30, 0x08, 6, 6, 4, 0, 0x8e, 0x46, 1, 6];
        let error = QcStatements::decode(&der).unwrap_err();
        assert_eq!(error.to_string(), "the QcType statement is malformed");
    }

    #[test]
    fn only_object_identifiers_are_oids() {
        for text in ["", "1", "1.", "3.1", "1.40", "1.2.-1", "1.2.x", "1.2.4294967296"] {
            assert_eq!(text.parse::<Oid>(), Err(Error::Oid), "{text}");
        }
    }
}
