//! TLS sessions for resumption, for as long as what was judged at their beginning still holds. A resumed session
//! presents no chain: without this a bank's tickets would outlive its certificate and the revocation lists.

use std::sync::Arc;

use rustls::NamedGroup;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{ServerName, UnixTime};

use super::judge::Judge;

/// The sessions of one configuration.
#[derive(Debug)]
pub(super) struct Sessions {
    kept: ClientSessionMemoryCache,
    judge: Arc<Judge>,
}

/// What rustls keeps by itself.
const SESSIONS: usize = 256;

impl Sessions {
    pub(super) fn new(judge: Arc<Judge>) -> Self {
        Self { kept: ClientSessionMemoryCache::new(SESSIONS), judge }
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.kept.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.kept.set_tls12_session(name, session);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        if self.judge.stands(UnixTime::now()) {
            return self.kept.tls12_session(name);
        }
        self.kept.remove_tls12_session(&name.to_owned());
        None
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.kept.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.kept.insert_tls13_ticket(name, ticket);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.judge.stands(UnixTime::now()) {
            return self.kept.take_tls13_ticket(name);
        }
        // None is left for when a successor has been judged.
        while self.kept.take_tls13_ticket(name).is_some() {}
        None
    }
}
