//! CRLs and OCSP responses, which come over plain HTTP from anybody on the way: no bytes panic, and what says something
//! of a certificate says it with the signature of its issuer, which only the corpus has.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use sealproxy::identity::pem;
use sealproxy::identity::revocation::{Issued, crls};

fuzz_target!(|bytes: &[u8]| {
    let gone = &*GONE;
    for list in crls(bytes).unwrap_or_default() {
        if let Ok(verdict) = gone.read_crl(&list, made()) {
            assert!(verdict.is_revoked(), "good, against its list");
        }
    }
    if let Ok(verdict) = gone.read_ocsp(bytes, made()) {
        assert!(verdict.is_revoked(), "good, against its responder");
    }
});

static GONE: LazyLock<Issued> = LazyLock::new(|| {
    let chain = pem::chain(include_bytes!("../../tests/vectors/revocation/gone.pem")).expect("a chain");
    Issued::from_chain(&chain).expect("leaf and issuer")
});

/// When the vectors were made.
fn made() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_432_900)
}
