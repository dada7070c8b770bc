//! `upstreams`: how each bank is reached, and how its requests are sealed.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use http::HeaderName;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::finding::Fault;
use super::identities::{named, path};
use super::limits::{UPSTREAM_TIMEOUT_KEYS, upstream_timeouts};
use super::listeners::host_name;
use super::quantity::{boolean, duration, whole};
use super::section::{Section, Value, distinct};
use super::{Registration, Upstream};
use crate::identity::{self, SealSettings};
use crate::proxy::api::{self, Api, Environment};
use crate::proxy::headers::{HOP_BY_HOP, OURS};
use crate::seal::Profile;
use crate::seal::cavage::SignatureFrame;
use crate::seal::dialect::{self, Dialect};
use crate::upstream::{NoPin, Origin, Pin, Roots, Settings, Timeouts, Trust, Via, is_private};

pub(super) const KEYS: [&str; 15] = [
    "url",
    "environment",
    "identity",
    "profile",
    "key_id",
    "seal_keys",
    "trust",
    "private",
    "via",
    "pass",
    "idle",
    "max_age",
    "connections",
    "in_flight",
    "timeouts",
];
pub(super) const TRUST_KEYS: [&str; 3] = ["roots", "pins", "crl"];
pub(super) const VIA_KEYS: [&str; 2] = ["url", "credentials"];
pub(super) const SEAL_KEY_KEYS: [&str; 4] = ["qsealc", "key_id", "active_from", "registered"];
pub(super) const PROFILE_KEYS: [&str; 4] = ["like", "key_id_quoted", "key_id_opaque", "sign"];
const PROFILES: [(&Dialect, &Api); 1] = [(&dialect::BECM, &api::BECM)];
const ENVIRONMENTS: [(&str, Environment); 2] =
    [("production", Environment::Production), ("sandbox", Environment::Sandbox)];

/// What an upstream takes from the rest of the file.
pub(super) struct Context<'a> {
    /// Where relative paths begin.
    pub(super) folder: &'a Path,
    /// The names of all identities.
    pub(super) names: &'a [&'a str],
    /// Those that are legal.
    pub(super) identities: &'a BTreeMap<String, identity::Settings>,
    /// The deadlines that it may override.
    pub(super) timeouts: Timeouts,
    /// Requests under way in the whole process.
    pub(super) in_flight: usize,
}

/// The upstreams that are legal, and the names of all.
pub(super) fn upstreams<'a>(root: &Section<'a>, context: &Context<'_>) -> (BTreeMap<String, Upstream>, Vec<&'a str>) {
    let entries = named(root, "upstreams", "name a bank, with its url, environment, identity and profile");
    let names = entries.iter().map(|(name, _)| *name).collect();
    // Each bank's share, so that those that hang leave the others theirs.
    let share = (context.in_flight / entries.len().max(1)).clamp(1, MOST_IN_FLIGHT);
    let legal = entries.iter().filter_map(|(name, value)| Some(((*name).to_owned(), upstream(value, context, share)?)));
    (legal.collect(), names)
}

/// Requests under way at one bank, unless the configuration says otherwise.
const MOST_IN_FLIGHT: usize = 256;

fn upstream(value: &Value<'_>, context: &Context<'_>, share: usize) -> Option<Upstream> {
    let section = value.section(&KEYS)?;
    let settings = settings(&section, context, share);
    let environment = environment(&section);
    let identity = identity(&section, context.names);
    let pass = pass(&section, settings.as_ref().is_none_or(|settings| settings.private));
    let Manner { profile, opaque_key_ids, api } = manner(&section, &pass)?;
    if pass.iter().any(|name| reaches(name, api)) {
        // Which ones is not said: a name may be the value of an environment variable.
        let fault = Fault::new("some of these headers reach the bank without being listed here").code("needless");
        section.report.note(&format!("{}.pass", section.key), fault);
    }
    let identity = identity?;
    // One that is not legal has been reported: then there is nothing to compare with.
    let registrations = match context.identities.get(&identity) {
        Some(settings) => registrations(&section, &profile, &settings.seals),
        None => Some(Vec::new()),
    };
    let registrations = registrations?;
    Some(Upstream {
        settings: settings?,
        environment: environment?,
        identity,
        registrations,
        profile,
        opaque_key_ids,
        api,
        pass,
    })
}

/// Which of the identity's seals the bank knows. An only one is taken for registered.
fn registrations(section: &Section<'_>, profile: &Profile, seals: &[SealSettings]) -> Option<Vec<Registration>> {
    let names: Vec<(&str, &str)> = seals.iter().map(|seal| (seal.name.as_str(), seal.name.as_str())).collect();
    match (section.value("seal_keys"), seals) {
        (Some(value), _) => {
            if let Some(key_id) = section.value("key_id") {
                key_id.refuse(
                    Fault::new("stands beside `seal_keys`")
                        .code("conflict")
                        .hint("write each seal's key_id into its entry there"),
                );
            }
            let items = value.items();
            let quoted = profile.key_id_quoted.unwrap_or(profile.dialect.key_id_quoted);
            if items.is_empty() && value.is_list() {
                value.refuse(Fault::new("is empty").code("missing-setting").hint(SEAL_KEYS_HINT));
            }
            let numbered = items.iter().enumerate();
            let legal: Vec<_> =
                numbered.filter_map(|(number, item)| registration(item, number, &names, quoted)).collect();
            for (index, one) in legal.iter().enumerate() {
                if legal[..index].iter().any(|earlier| earlier.seal == one.seal) {
                    value.refuse(Fault::listed_twice(format!("lists the seal {} twice", one.seal)));
                }
            }
            (legal.len() == items.len()).then_some(legal)
        }
        (None, [only]) => Some(vec![Registration {
            seal: only.name.clone(),
            key_id: profile.key_id.clone(),
            from: Some(SystemTime::UNIX_EPOCH),
            key_id_setting: "key_id".to_owned(),
        }]),
        (None, _) => {
            section.required("seal_keys", SEAL_KEYS_HINT);
            None
        }
    }
}

const SEAL_KEYS_HINT: &str =
    "say which of the identity's seals the bank knows: [{ qsealc: NAME, key_id: …, registered: true }]";

fn registration(item: &Value<'_>, number: usize, names: &[(&str, &str)], quoted: bool) -> Option<Registration> {
    let section = item.section(&SEAL_KEY_KEYS)?;
    let seal = section.required("qsealc", "name one of the identity's seals")?.choice("seal", names);
    let key_id = section.value("key_id").and_then(|value| value.text(|text| key_id(text, quoted)));
    let since = section.value("active_from").map(|value| value.text(moment));
    let registered = section.value("registered").map(|value| value.quantity(boolean));
    let from = match (since, registered) {
        (None, None) => {
            item.refuse(
                Fault::new("does not say whether the bank knows this seal")
                    .code("missing-setting")
                    .hint("write `registered: true`, or `active_from: 2026-12-01T00:00:00Z`"),
            );
            return None;
        }
        (_, Some(Some(false))) => None,
        (None, _) => Some(SystemTime::UNIX_EPOCH),
        (Some(since), _) => Some(since?),
    };
    let key_id_setting = format!("seal_keys[{number}].key_id");
    Some(Registration { seal: seal?.to_owned(), key_id, from, key_id_setting })
}

/// A moment of RFC 3339, such as `2026-12-01T00:00:00Z`.
fn moment(text: &str) -> Result<SystemTime, Fault> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339);
    parsed.map(SystemTime::from).map_err(|_| {
        Fault::new("is not a moment").hint("write date, time and offset (RFC 3339), such as 2026-12-01T00:00:00Z")
    })
}

fn settings(section: &Section<'_>, context: &Context<'_>, share: usize) -> Option<Settings> {
    let private = section.quantity("private", false, boolean);
    let url = section.required("url", "write the bank's scheme and host, such as https://oauth2-apisi.e-i.com");
    let origin = url.and_then(|value| value.text(|text| public_origin(text, private)));
    let trust = section.value("trust").map_or_else(Trust::default, |value| trust(&value, context.folder));
    let via = section.value("via").and_then(|value| via(&value, context.folder));
    let idle = section.quantity("idle", Duration::from_secs(50), duration);
    let max_age = section.quantity("max_age", Duration::from_secs(600), duration);
    let connections = section.quantity("connections", 128, |text| whole(text, 1..=65_536));
    let in_flight = section.quantity("in_flight", share, |text| whole(text, 1..=1_000_000));
    let timeouts = upstream_timeouts(&section.section("timeouts", &UPSTREAM_TIMEOUT_KEYS), context.timeouts);
    Some(Settings { origin: origin?, trust, private, via, idle, max_age, connections, in_flight, timeouts })
}

/// The roots, or a map with more to ask of a bank. What is not legal has been reported, and stands for nothing.
fn trust(value: &Value<'_>, folder: &Path) -> Trust {
    let roots = |value: &Value<'_>| value.text(|text| roots(text, folder)).unwrap_or_default();
    if !value.is_map() {
        return Trust { roots: roots(value), ..Trust::default() };
    }
    let Some(section) = value.section(&TRUST_KEYS) else { return Trust::default() };
    Trust {
        roots: section.value("roots").map_or_else(Roots::default, |value| roots(&value)),
        pins: section.value("pins").map(|value| pins(&value)).unwrap_or_default(),
        lists: section.value("crl").map(|value| lists(&value, folder)).unwrap_or_default(),
    }
}

fn roots(text: &str, folder: &Path) -> Result<Roots, Fault> {
    if text == "system" { Ok(Roots::System) } else { path(text, folder).map(Roots::File) }
}

/// At least one, each once.
fn pins(value: &Value<'_>) -> Vec<Pin> {
    const HOW: &str = "write sha256: and 64 hex digits, or the Base64 of the hash; `check --connect` shows the bank's";
    let items = value.items();
    let pin = |text: &str| text.parse().map_err(|error: NoPin| Fault::new(error.to_string()).hint(HOW));
    let pins = distinct(&items, "key", |item| item.text(pin));
    if value.is_list() && items.is_empty() {
        value.refuse(Fault::new("names no key").hint("name one, or take `pins` away"));
    }
    if items.len() == 1 && pins.len() == 1 {
        // RFC 7469 section 4.3 asks for a backup.
        let fault = Fault::new("names one key alone: no request reaches the bank from the day on which it has another")
            .code("single-pin");
        value.report.note(&value.key, fault.hint("add the bank's next key, or that of its authority"));
    }
    pins
}

/// At least one.
fn lists(value: &Value<'_>, folder: &Path) -> Vec<PathBuf> {
    let items = value.items_or_one();
    if value.is_list() && items.is_empty() {
        value.refuse(Fault::new("names no file").hint("name one, or take `crl` away"));
    }
    items.iter().filter_map(|item| item.text(|text| path(text, folder))).collect()
}

/// A company's proxy: its URL, or a map with the URL and the file of credentials.
pub(super) fn via(value: &Value<'_>, folder: &Path) -> Option<Via> {
    let details = if value.is_map() { Some(value.section(&VIA_KEYS)?) } else { None };
    let url = match &details {
        Some(details) => details.required("url", "write the proxy's scheme, host and port: http://HOST:PORT")?,
        None => value.clone(),
    };
    let credentials = details.and_then(|details| details.value("credentials"));
    let credentials = credentials.and_then(|value| value.text(|text| credentials_path(text, folder)));
    let Origin { host, port } = url.text(proxy_url)?;
    Some(Via { host, port, credentials })
}

/// Scheme and authority of a proxy's URL. May hold a password where none belongs: then it is not shown.
fn proxy_url(text: &str) -> Result<Origin, Fault> {
    const HOW: &str = "write http://HOST:PORT";
    if text.contains('@') {
        return Err(Fault::new("has a user name or a password")
            .hint("put them in a file, and write via: { url: \"http://HOST:PORT\", credentials: FILE }")
            .hidden());
    }
    match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            authority(rest, 80).map_err(|fault| fault.hint(HOW))
        }
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
            Err(Fault::new("asks for TLS to the proxy, which is not supported")
                .hint("write http://HOST:PORT: what goes through the proxy is TLS to the bank"))
        }
        Some(_) => Err(Fault::new("has a scheme other than http").hint(HOW)),
        None => Err(Fault::new("is not a URL").hint(HOW)),
    }
}

/// The path of a file with `user:password`. Whoever writes the credentials themselves does not see them again.
fn credentials_path(text: &str, folder: &Path) -> Result<PathBuf, Fault> {
    if text.contains(':') {
        return Err(Fault::new("is not a path").hint("write user:password to a file, and name the file").hidden());
    }
    path(text, folder)
}

fn environment(section: &Section<'_>) -> Option<Environment> {
    let value = section.required("environment", "write production or sandbox")?;
    value.choice("environment", &ENVIRONMENTS)
}

fn identity(section: &Section<'_>, names: &[&str]) -> Option<String> {
    match (section.value("identity"), names) {
        (Some(value), _) => {
            let known: Vec<(&str, &str)> = names.iter().map(|name| (*name, *name)).collect();
            value.choice("identity", &known).map(str::to_owned)
        }
        (None, [only]) => Some((*only).to_owned()),
        // That there is no identity at all is reported where they should stand.
        (None, []) => None,
        (None, _) => {
            section.required("identity", &format!("name one of {}", names.join(", ")));
            None
        }
    }
}

/// How a bank wants requests, and how it names keys.
struct Manner {
    profile: Profile,
    opaque_key_ids: bool,
    api: &'static Api,
}

fn manner(section: &Section<'_>, pass: &[HeaderName]) -> Option<Manner> {
    let value = section.required("profile", "name how the bank wants requests sealed: becm")?;
    let details = if value.is_map() { Some(value.section(&PROFILE_KEYS)?) } else { None };
    let name = match &details {
        Some(details) => details.required("like", "name the profile to start from: becm")?,
        None => value,
    };
    let known = PROFILES.map(|profile| (profile.0.name, profile));
    let (dialect, api) = name.choice("profile", &known)?;
    let details = details.as_ref();
    let key_id_quoted = details.and_then(|details| details.value("key_id_quoted")?.quantity(boolean));
    let sign = details.and_then(|details| details.value("sign")).map(|value| {
        let legal = |name: &HeaderName| may_sign(name, dialect, reaches(name, api) || pass.contains(name));
        headers(&value, legal)
    });
    let quoted = key_id_quoted.unwrap_or(dialect.key_id_quoted);
    let key_id = section.value("key_id").and_then(|value| value.text(|text| key_id(text, quoted)));
    let opaque_key_ids = details.and_then(|details| details.value("key_id_opaque")?.quantity(boolean));
    let profile = Profile { dialect, key_id, key_id_quoted, sign: sign.unwrap_or_default() };
    Some(Manner { profile, opaque_key_ids: opaque_key_ids.unwrap_or(false), api })
}

fn key_id(text: &str, quoted: bool) -> Result<String, Fault> {
    if SignatureFrame::accepts(text, quoted) {
        return Ok(text.to_owned());
    }
    let (reason, hint) = if quoted {
        ("cannot be written between quotes", "write visible ASCII without `\"` and `\\`")
    } else {
        (
            "cannot be written without quotes",
            "write a token (RFC 9110 section 5.6.2), or take `key_id_quoted: false` away",
        )
    };
    Err(Fault::new(reason).hint(hint))
}

fn pass(section: &Section<'_>, private: bool) -> Vec<HeaderName> {
    section.value("pass").map(|value| headers(&value, |name| may_pass(name, private))).unwrap_or_default()
}

/// Header names, each of which must be legal, and none of which may stand twice.
fn headers(value: &Value<'_>, legal: impl Fn(&HeaderName) -> Result<(), Fault>) -> Vec<HeaderName> {
    let name = |text: &str| header(text).and_then(|name| legal(&name).map(|()| name));
    distinct(&value.items(), "header", |item| item.text(name))
}

fn header(text: &str) -> Result<HeaderName, Fault> {
    let hint = "write the name of one header, such as psu-ip-address; there are no patterns";
    let name = HeaderName::from_bytes(text.as_bytes()).ok().filter(|_| !text.contains('*'));
    name.ok_or_else(|| Fault::new("is not a header's name").hint(hint))
}

fn may_pass(name: &HeaderName, private: bool) -> Result<(), Fault> {
    let name = name.as_str();
    if HOP_BY_HOP.contains(&name) {
        return Err(Fault::new("concerns one connection and never passes (RFC 9110 section 7.6.1)")
            .hint("take it from the list"));
    }
    if OURS.contains(&name) || name == "date" || name.starts_with("sealproxy-") {
        return Err(Fault::new("is the proxy's own: a caller's never reaches the bank").hint("take it from the list"));
    }
    if name == SANDBOX_FAULT && !private {
        return Err(Fault::new("makes a sandbox bank fail and has no place on the way to a real one")
            .hint("take it from the list; it is legal only beside `private: true`"));
    }
    Ok(())
}

fn may_sign(name: &HeaderName, dialect: &Dialect, reaches_bank: bool) -> Result<(), Fault> {
    let text = name.as_str();
    if text == "authorization" {
        return Err(Fault::new("is not to be signed: no bank of this profile expects it").hint("take it from the list"));
    }
    if dialect.covered.iter().any(|covered| covered.name == text) {
        return Err(Fault::new("is signed already").hint("take it from the list: it names further headers only"));
    }
    if HOP_BY_HOP.contains(&text) || OURS.contains(&text) || text == "date" {
        return Err(Fault::new("cannot be signed: the bank does not get it as we do").hint("take it from the list"));
    }
    if !reaches_bank {
        return Err(Fault::new("never reaches the bank").hint("list it in `pass` too"));
    }
    Ok(())
}

/// Whether a header reaches the bank on every sealed route.
fn reaches(name: &HeaderName, api: &Api) -> bool {
    api.headers.iter().any(|pattern| pattern.matches(name.as_str()))
}

/// Tells the sandbox bank to misbehave.
const SANDBOX_FAULT: &str = "x-sandbox-fault";

/// An origin that the connector will agree to connect to, as far as the URL alone can tell.
fn public_origin(text: &str, private: bool) -> Result<Origin, Fault> {
    // Whatever else is wrong with it: before an `@` there may be a password.
    let origin = origin(text).map_err(|fault| if text.contains('@') { fault.hidden() } else { fault })?;
    if !private && (is_localhost(&origin.host) || origin.host.parse().is_ok_and(is_private)) {
        return Err(Fault::new("names an address within this machine or network")
            .hint("if the bank is a simulation that runs there, write `private: true`"));
    }
    Ok(origin)
}

/// RFC 6761 section 6.3.
fn is_localhost(host: &str) -> bool {
    host.rsplit('.').next() == Some("localhost")
}

/// Scheme and authority of a URL (RFC 3986), and nothing more.
fn origin(text: &str) -> Result<Origin, Fault> {
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => rest,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => {
            return Err(Fault::new("is not encrypted").hint("write https://…: banks are reached with TLS only"));
        }
        Some(_) => return Err(Fault::new("has a scheme other than https").hint("write https://HOST")),
        None => return Err(Fault::new("is not a URL").hint("write https://HOST")),
    };
    authority(rest, 443)
}

/// What follows `://`: host and port, and nothing more.
fn authority(text: &str, default_port: u16) -> Result<Origin, Fault> {
    let end = text.find(['/', '?', '#']).unwrap_or(text.len());
    let (authority, rest) = text.split_at(end);
    if rest.contains(['?', '#']) {
        return Err(Fault::new("has a query or a fragment").hint("write scheme and host alone"));
    }
    if !matches!(rest, "" | "/") {
        return Err(Fault::new("has a path")
            .hint("write scheme and host alone: the caller's path is kept, and `routes` says which paths pass"));
    }
    if authority.contains('@') {
        return Err(Fault::new("has a user name or a password").hint("write scheme and host alone"));
    }
    let (host, port) = split_port(authority, default_port)?;
    Ok(Origin { host: host_of_url(host)?, port })
}

fn split_port(authority: &str, default: u16) -> Result<(&str, u16), Fault> {
    let begin = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None if authority.starts_with('[') => authority.len(),
        None => 0,
    };
    let Some(colon) = authority[begin..].find(':').map(|colon| begin + colon) else { return Ok((authority, default)) };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    let number = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten();
    let port = number.filter(|port| *port != 0);
    port.map(|port| (host, port))
        .ok_or_else(|| Fault::new("has no legal port").hint("write 1 to 65535, or none for that of the scheme"))
}

fn host_of_url(host: &str) -> Result<String, Fault> {
    if host.is_empty() {
        return Err(Fault::new("has no host").hint("write https://HOST"));
    }
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').and_then(|address| address.parse::<Ipv6Addr>().ok());
        let fault = || Fault::new("has no legal IPv6 address").hint("write it in brackets: https://[2a00:1450::1]");
        return address.map(|address| address.to_string()).ok_or_else(fault);
    }
    // The dot that ends an absolute name is in no certificate and in no `Host`.
    let name = host_name(host.strip_suffix('.').unwrap_or(host));
    name.map_err(|fault| match host.is_ascii() {
        true => Fault { reason: "has a host that is not a host name".to_owned(), ..fault },
        false => fault,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_and_authority() {
        for (text, host, port) in [
            ("https://oauth2-apisi.e-i.com", "oauth2-apisi.e-i.com", 443),
            ("HTTPS://OAuth2-APISI.e-i.com./", "oauth2-apisi.e-i.com", 443),
            ("https://bank:8443/", "bank", 8443),
            ("https://193.57.70.1:443", "193.57.70.1", 443),
            ("https://[2A00:1450::1]:8443", "2a00:1450::1", 8443),
            ("https://xn--bnk-0la.fr", "xn--bnk-0la.fr", 443),
        ] {
            assert_eq!(origin(text), Ok(Origin { host: host.into(), port }), "{text}");
        }
    }

    #[test]
    fn whatever_more_a_url_has_is_refused() {
        for (text, reason) in [
            ("http://bank", "is not encrypted"),
            ("ftp://bank", "has a scheme other than https"),
            ("bank", "is not a URL"),
            ("https:bank", "is not a URL"),
            ("https://", "has no host"),
            ("https://:443", "has no host"),
            ("https://bank/becm", "has a path"),
            ("https://bank//", "has a path"),
            ("https://bank/?", "has a query or a fragment"),
            ("https://bank?a=b", "has a query or a fragment"),
            ("https://bank#a", "has a query or a fragment"),
            ("https://u:p@bank", "has a user name or a password"),
            ("https://bank:", "has no legal port"),
            ("https://bank:0", "has no legal port"),
            ("https://bank:65536", "has no legal port"),
            ("https://bank:+443", "has no legal port"),
            ("https://bank:443:443", "has no legal port"),
            ("https://bänk.fr", "holds a letter outside ASCII"),
            ("https://b nk", "has a host that is not a host name"),
            ("https://bank\\x", "has a host that is not a host name"),
            ("https://*.bank.fr", "has a host that is not a host name"),
            ("https://bank..fr", "has a host that is not a host name"),
            ("https://bank..", "has a host that is not a host name"),
            ("https://127.1", "has a host that is not a host name"),
            ("https://[::1", "has no legal IPv6 address"),
            ("https://[fe80::1%25eth0]", "has no legal IPv6 address"),
        ] {
            assert_eq!(origin(text).map_err(|fault| fault.reason), Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn local_addresses_need_private() {
        for text in [
            "https://localhost",
            "https://127.0.0.1",
            "https://10.1.2.3",
            "https://[::1]",
            "https://[::ffff:192.168.0.1]",
            "https://0.0.0.0",
            "https://[::]",
            "https://100.64.0.1",
            "https://bank.localhost",
        ] {
            assert!(public_origin(text, false).is_err(), "{text}");
            assert!(public_origin(text, true).is_ok(), "{text}");
        }
        for text in ["https://193.57.70.1", "https://localhost.fr", "https://mylocalhost"] {
            assert!(public_origin(text, false).is_ok(), "{text}");
        }
    }
}
