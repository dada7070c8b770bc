//! A bank and its trust service provider on loopback, for `dev`, tests and benches. Never imports the proxy: what it
//! judges is what came over the wire.

pub mod authority;
pub mod bank;
pub mod kit;
