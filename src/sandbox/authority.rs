//! A throwaway trust service provider: issues QWACs and QSealCs as TS 119 495 and EN 319 412 have them, and server
//! certificates for a sandbox bank. Nothing outside the sandbox trusts it. Must not know the proxy or the bank.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, CustomExtension, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SanType,
    SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use yasna::models::ObjectIdentifier;

use crate::identity::qcstatements::{self, Psd2, QcStatements, QcType, Role};

/// An EC P-256 root that issues everything itself.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    validity: Range<SystemTime>,
}

impl Authority {
    /// Makes a root that is valid for 10 years. What it issues is valid for 90 days. Both begin an hour before
    /// `now`, for the sake of clocks that are late.
    pub fn new(now: SystemTime) -> Result<Self, Error> {
        let start = now - HOUR;
        let key = KeyKind::P256.generate()?;
        let mut params = params(&(start..now + 3652 * DAY))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, printable("FR")?);
        params.distinguished_name.push(DnType::OrganizationName, NAME);
        params.distinguished_name.push(DnType::CommonName, NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, validity: start..now + 90 * DAY })
    }

    /// The same authority, whose certificates are from now on valid from the range's start to its end, to the
    /// second: expired or not yet valid, if that is what a test needs.
    pub fn with_validity(self, validity: Range<SystemTime>) -> Self {
        Self { validity, ..self }
    }

    /// The root's certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// Issues a QWAC: QCP-w for PSD2 (TS 119 495 section 5, EN 319 412-4), with what the CA/Browser Forum's rules for
    /// extended validation add to the subject and demand beside it.
    pub fn qwac(&self, tpp: &Tpp, key: KeyKind) -> Result<Issued, Error> {
        let mut params = self.leaf(tpp.website_name()?)?;
        params.is_ca = IsCa::NoCa;
        params.subject_alt_names = vec![SanType::DnsName(tpp.common_name.as_str().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let policies = policies(&[EXTENDED_VALIDATION, QCP_W]);
        params.custom_extensions.extend([policies, tpp.organization()?, statements(QcType::Web)]);
        self.issue(&params, key)
    }

    /// Issues a QSealC: QCP-l, nonRepudiation alone (EN 319 412-3 section 4.3.1), no extended key usage.
    pub fn qsealc(&self, tpp: &Tpp, key: KeyKind) -> Result<Issued, Error> {
        let mut params = self.leaf(tpp.distinguished_name()?)?;
        params.key_usages = vec![KeyUsagePurpose::ContentCommitment];
        params.custom_extensions.extend([policies(&[QCP_L]), statements(QcType::ESeal)]);
        self.issue(&params, key)
    }

    /// Issues a TLS server's certificate for DNS names and IP addresses; the first is its common name.
    pub fn server(&self, names: &[&str], key: KeyKind) -> Result<Issued, Error> {
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, *names.first().ok_or(Error::NoName)?);
        let mut params = self.leaf(name)?;
        params.subject_alt_names = names.iter().map(|name| alternative_name(name)).collect::<Result<_, _>>()?;
        params.key_usages = key.tls_usages();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&params, key)
    }

    fn leaf(&self, name: DistinguishedName) -> Result<CertificateParams, Error> {
        let mut params = params(&self.validity)?;
        params.distinguished_name = name;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![format!("{SITE}root.crl")] }];
        params.custom_extensions = vec![authority_information()];
        Ok(params)
    }

    fn issue(&self, params: &CertificateParams, kind: KeyKind) -> Result<Issued, Error> {
        let key = kind.generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { chain_pem: format!("{leaf}{}", self.certificate), key_pem: key.serialize_pem() })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("validity", &self.validity).finish_non_exhaustive()
    }
}

/// A certificate chain and the key of its leaf.
#[derive(Clone)]
pub struct Issued {
    /// PEM: the leaf, then the root.
    pub chain_pem: String,
    /// PEM of an unencrypted PKCS#8 key.
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

/// A third-party provider, as its certificates name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpp {
    /// Its legal name.
    pub organization: String,
    /// `PSD`, country, authority and authorisation number (TS 119 495 section 5.2.1).
    pub organization_identifier: String,
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// A DNS name: the QWAC must have one.
    pub common_name: String,
}

impl Tpp {
    /// One for demonstrations.
    pub fn demo() -> Self {
        Self {
            organization: "Démo Paiements SAS".into(),
            organization_identifier: "PSDFR-ACPR-99999".into(),
            country: "FR".into(),
            common_name: "tpp.sandbox.example.com".into(),
        }
    }

    fn distinguished_name(&self) -> Result<DistinguishedName, Error> {
        let mut name = DistinguishedName::new();
        name.push(DnType::CountryName, printable(&self.country)?);
        self.name_organization(&mut name);
        name.push(DnType::CommonName, self.common_name.as_str());
        Ok(name)
    }

    /// A website's owner (EV Guidelines section 7.1.4.2); the website itself stands in the subjectAltName.
    fn website_name(&self) -> Result<DistinguishedName, Error> {
        let mut name = DistinguishedName::new();
        name.push(DnType::CountryName, printable(&self.country)?);
        name.push(DnType::LocalityName, "Paris");
        self.name_organization(&mut name);
        name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), printable("000 000 000")?);
        name.push(DnType::CustomDnType(BUSINESS_CATEGORY.to_vec()), "Private Organization");
        name.push(DnType::CustomDnType(JURISDICTION_COUNTRY.to_vec()), printable(&self.country)?);
        Ok(name)
    }

    fn name_organization(&self, name: &mut DistinguishedName) {
        name.push(DnType::OrganizationName, self.organization.as_str());
        name.push(DnType::CustomDnType(ORGANIZATION_IDENTIFIER.to_vec()), self.organization_identifier.as_str());
    }

    /// cabfOrganizationIdentifier (EV Guidelines section 7.1.2.2): the organizationIdentifier in its parts.
    fn organization(&self) -> Result<CustomExtension, Error> {
        let split = || {
            let (head, reference) = self.organization_identifier.split_once('-')?;
            Some((head.get(..3)?, head.get(3..)?, reference))
        };
        let (scheme, country, reference) = split().ok_or(Error::OrganizationIdentifier)?;
        let content = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_printable_string(scheme);
                writer.next().write_printable_string(country);
                writer.next().write_utf8_string(reference);
            });
        });
        Ok(CustomExtension::from_oid_content(CABF_ORGANIZATION_IDENTIFIER, content))
    }
}

/// The kind of key to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA of 2048 bits.
    #[default]
    Rsa2048,
    /// EC on P-256.
    P256,
}

impl KeyKind {
    fn generate(self) -> Result<KeyPair, Error> {
        Ok(KeyPair::generate_for(match self {
            Self::Rsa2048 => &PKCS_RSA_SHA256,
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
        })?)
    }

    /// An EC key enciphers nothing (RFC 5480 section 3).
    fn tls_usages(self) -> Vec<KeyUsagePurpose> {
        match self {
            Self::Rsa2048 => vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment],
            Self::P256 => vec![KeyUsagePurpose::DigitalSignature],
        }
    }
}

/// Why a certificate was not issued.
#[derive(Debug, Error)]
pub enum Error {
    /// A name that cannot stand in a certificate, or a failure of the library.
    #[error("the certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// A server certificate for nobody.
    #[error("a server certificate needs a name")]
    NoName,
    /// An organizationIdentifier that is not SCHEME and COUNTRY, a hyphen and a reference.
    #[error("the organization identifier has not the form PSDFR-ACPR-12345")]
    OrganizationIdentifier,
    /// The operating system gave no randomness.
    #[error("there is no randomness for a serial number")]
    Random,
}

fn params(validity: &Range<SystemTime>) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.not_before = validity.start.into();
    params.not_after = validity.end.into();
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// 16 random bytes, of which the first is neither negative nor zero: DER keeps their number.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn printable(text: &str) -> Result<DnValue, Error> {
    Ok(DnValue::PrintableString(text.try_into()?))
}

fn alternative_name(name: &str) -> Result<SanType, Error> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(name.try_into()?)),
    }
}

fn statements(qc_type: QcType) -> CustomExtension {
    let statements = QcStatements {
        compliance: true,
        qc_type: Some(qc_type),
        sscd: false,
        psd2: Some(Psd2 {
            roles: vec![Role::AccountInformation, Role::PaymentInitiation],
            // Plain Latin letters (TS 119 495, GEN-5.2.3-1).
            nca_name: "Autorite de controle prudentiel et de resolution".into(),
            nca_id: "FR-ACPR".into(),
        }),
        pds: vec![("https://pki.sandbox.example.com/pds_en.pdf".into(), "en".into())],
        others: Vec::new(),
    };
    CustomExtension::from_oid_content(qcstatements::EXTENSION, statements.encode())
}

/// certificatePolicies (RFC 5280 section 4.2.1.4).
fn policies(oids: &[&[u64]]) -> CustomExtension {
    let content = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            for oid in oids {
                writer.next().write_sequence(|writer| writer.next().write_oid(&ObjectIdentifier::from_slice(oid)));
            }
        });
    });
    CustomExtension::from_oid_content(&[2, 5, 29, 32], content)
}

/// authorityInfoAccess with caIssuers and OCSP (RFC 5280 section 4.2.2.1).
fn authority_information() -> CustomExtension {
    let content = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            for (method, file) in [(1, "ocsp"), (2, "root.cer")] {
                writer.next().write_sequence(|writer| {
                    writer.next().write_oid(&ObjectIdentifier::from_slice(&[1, 3, 6, 1, 5, 5, 7, 48, method]));
                    // GeneralName: [6] uniformResourceIdentifier.
                    writer.next().write_tagged_implicit(yasna::Tag::context(6), |writer| {
                        writer.write_ia5_string(&format!("{SITE}{file}"));
                    });
                });
            }
        });
    });
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], content)
}

const NAME: &str = "sealproxy sandbox QTSP";
/// Nobody is there: example.com is set aside (RFC 2606 section 3), and linters take it for a name of the internet.
const SITE: &str = "http://pki.sandbox.example.com/";
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];
const BUSINESS_CATEGORY: [u64; 4] = [2, 5, 4, 15];
const JURISDICTION_COUNTRY: [u64; 11] = [1, 3, 6, 1, 4, 1, 311, 60, 2, 1, 3];
const CABF_ORGANIZATION_IDENTIFIER: &[u64] = &[2, 23, 140, 3, 1];
const ORGANIZATION_IDENTIFIER: [u64; 4] = [2, 5, 4, 97];
/// Qualified certificates for legal persons (EN 319 411-2 section 5.3).
const QCP_L: &[u64] = &[0, 4, 0, 194112, 1, 1];
/// Qualified website certificates (EN 319 411-2 section 5.3).
const QCP_W: &[u64] = &[0, 4, 0, 194112, 1, 4];
/// Extended validation (EV Guidelines section 7.1.6.1).
const EXTENDED_VALIDATION: &[u64] = &[2, 23, 140, 1, 1];
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;
    use crate::identity::certificate::{Certificate, PublicKey, Validity};
    use crate::key::{Key, Patience};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn leaf(issued: &Issued) -> Certificate {
        Certificate::from_der(CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap()).unwrap()
    }

    fn now() -> SystemTime {
        NOW + 20_000 * DAY
    }

    #[test]
    fn a_qwac_and_a_qsealc_say_what_they_are() {
        let authority = Authority::new(now()).unwrap();
        let qwac = leaf(&authority.qwac(&Tpp::demo(), KeyKind::Rsa2048).unwrap());
        let qsealc = leaf(&authority.qsealc(&Tpp::demo(), KeyKind::P256).unwrap());
        for (certificate, qc_type) in [(&qwac, QcType::Web), (&qsealc, QcType::ESeal)] {
            let statements = certificate.qc_statements().unwrap().unwrap();
            assert!(statements.compliance);
            assert_eq!(statements.qc_type, Some(qc_type));
            assert_eq!(statements.psd2.as_ref().unwrap().nca_id, "FR-ACPR");
            assert!(certificate.subject().contains("organizationIdentifier=PSDFR-ACPR-99999,O=Démo Paiements SAS,"));
            assert_eq!(certificate.issuer(), "CN=sealproxy sandbox QTSP,O=sealproxy sandbox QTSP,C=FR");
            assert_eq!(certificate.serial_hex().len(), 32);
            assert_eq!(certificate.validity_at(now()), Validity::Valid);
            assert!(!certificate.is_ca());
        }
        assert!(matches!(qwac.public_key(), PublicKey::Rsa { bits: 2048, .. }));
        assert!(matches!(qsealc.public_key(), PublicKey::Ec { .. }));
    }

    #[test]
    fn the_validity_is_the_one_asked_for() {
        let authority = Authority::new(now()).unwrap();
        let authority = authority.with_validity(now() - 2 * DAY..now() - DAY);
        let expired = leaf(&authority.qsealc(&Tpp::demo(), KeyKind::P256).unwrap());
        assert_eq!(expired.not_before(), now() - 2 * DAY);
        assert_eq!(expired.validity_at(now()), Validity::Expired);
        let authority = authority.with_validity(now() + DAY..now() + 2 * DAY);
        let early = leaf(&authority.server(&["bank.sandbox.example.com"], KeyKind::P256).unwrap());
        assert_eq!(early.validity_at(now()), Validity::NotYet);
    }

    #[tokio::test]
    async fn every_key_signs_for_its_certificate() {
        let authority = Authority::new(now()).unwrap();
        for kind in [KeyKind::Rsa2048, KeyKind::P256] {
            let issued = authority.qsealc(&Tpp::demo(), kind).unwrap();
            let der = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
            for key in [Key::from_der(&der).unwrap(), Key::with_ring(&der).unwrap()] {
                let signature = key.turn(Patience::of(DAY)).await.unwrap().sign(b"message").await.unwrap();
                assert_eq!(leaf(&issued).verify(b"message", &signature, key.scheme()), Ok(()));
            }
        }
    }

    #[test]
    fn a_server_needs_a_name_that_a_certificate_can_hold() {
        let authority = Authority::new(now()).unwrap();
        assert!(authority.server(&["localhost", "127.0.0.1", "::1"], KeyKind::P256).is_ok());
        assert!(matches!(authority.server(&[], KeyKind::P256), Err(Error::NoName)));
        assert!(matches!(authority.server(&["é"], KeyKind::P256), Err(Error::Certificate(_))));
    }

    #[test]
    fn no_debug_output_shows_a_key() {
        let authority = Authority::new(now()).unwrap();
        let issued = authority.qsealc(&Tpp::demo(), KeyKind::P256).unwrap();
        let secret = issued.key_pem.lines().nth(1).unwrap();
        assert!(!format!("{authority:?}{issued:?}").contains(secret));
        assert!(!format!("{issued:?}").contains("PRIVATE KEY"));
    }
}
