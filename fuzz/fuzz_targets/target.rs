#![no_main]
use libfuzzer_sys::fuzz_target;
fuzz_target!(|d: &[u8]| { let _ = sealproxy::proxy::target::lenient_reading(std::str::from_utf8(d).unwrap_or_default(), None); });
