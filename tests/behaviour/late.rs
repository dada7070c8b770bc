//! A bank that speaks TLS out of turn, after the handshake.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ServerConfig, ServerConnection, StreamOwned};
use sealproxy::identity::pem;

use crate::support::{Rig, config, kit};

const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";

/// A bank on TLS 1.3 that asks for no certificate, reads a request, says this and no more. No TLS library says such
/// things on demand, and so the record is made here: `inner` is its content with the type behind it.
fn says_after_the_request(listener: &TcpListener, inner: Vec<u8>) -> std::io::Result<()> {
    let (socket, _) = listener.accept()?;
    let chain = pem::read_chain(&kit().path("bank.pem")).expect("a chain");
    let key = pem::read_key(&kit().path("bank.key")).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has suites for it")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    config.enable_secret_extraction = true;
    let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).expect("a session"), socket);
    let mut request = [0; 4096];
    assert!(tls.read(&mut request)? > 0);
    let StreamOwned { conn, mut sock } = tls;
    let secrets = conn.dangerous_extract_secrets().expect("enabled");
    let (sequence, ConnectionTrafficSecrets::Aes256Gcm { key, iv }) = secrets.tx else { panic!("another suite") };
    sock.write_all(&record(inner, key.as_ref(), iv.as_ref(), sequence))?;
    let _ = sock.read_to_end(&mut Vec::new());
    Ok(())
}

/// One encrypted record (RFC 8446 section 5.2).
fn record(mut inner: Vec<u8>, key: &[u8], iv: &[u8], sequence: u64) -> Vec<u8> {
    let length = u16::try_from(inner.len() + 16).expect("short").to_be_bytes();
    let header = [23, 3, 3, length[0], length[1]];
    let mut nonce: [u8; 12] = iv.try_into().expect("96 bits");
    nonce[4..].iter_mut().zip(sequence.to_be_bytes()).for_each(|(nonce, sequence)| *nonce ^= sequence);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("256 bits"));
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut inner).expect("sealed");
    [&header[..], &inner].concat()
}

/// What a caller learns whose bank says this after the request.
fn answered(inner: Vec<u8>) -> (u16, String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let rig = Rig::start(&config(listener.local_addr().expect("bound"), "", ""));
    let bank = std::thread::spawn(move || says_after_the_request(&listener, inner));
    let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
    assert!(bank.join().expect("no panic").is_ok());
    (answer.status, answer.problem(), answer.outcome())
}

#[test]
fn a_refusal_by_a_bank_that_has_not_asked_for_our_certificate_speaks_of_the_request() {
    for alert in [49, 46] {
        // access_denied, certificate_unknown: fatal, from whoever has read the request and may have acted on it.
        let said = answered(vec![2, alert, 21]);
        assert_eq!(said, (502, "upstream-closed".into(), "unknown".into()), "alert {alert}");
    }
}
