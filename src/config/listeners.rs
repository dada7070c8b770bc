//! `listen`, `admin` and `hosts`: where the proxy is reached and by which names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::finding::Fault;
use super::quantity::boolean;
use super::section::{Section, Value, distinct};
use crate::admin::{self, Page};
use crate::proxy::listener::{self, Address};

pub(super) const LISTEN_KEYS: [&str; 4] = ["address", "open", "peers", "mode"];
pub(super) const ADMIN_KEYS: [&str; 2] = ["address", "serve"];
const PAGES: [(&str, Page); 4] =
    [("livez", Page::Livez), ("readyz", Page::Readyz), ("metrics", Page::Metrics), ("status", Page::Status)];

/// Where local clients reach the proxy: at least one address, none twice.
pub(super) fn listen(root: &Section<'_>) -> Vec<listener::Settings> {
    let Some(value) = root.value("listen") else {
        return vec![Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))).into()];
    };
    let items = value.items_or_one();
    if items.is_empty() && value.is_list() {
        value.refuse(Fault::new("names no address").hint("take the key away to listen on 127.0.0.1:8080"));
    }
    let mut listeners: Vec<listener::Settings> = Vec::new();
    for item in items {
        let Some(listener) = listener(&item) else { continue };
        if listeners.iter().any(|other| takes_away(&other.address, &listener.address)) {
            item.refuse(Fault::listed_twice("the same address is listed twice"));
        }
        listeners.push(listener);
    }
    listeners
}

fn listener(item: &Value<'_>) -> Option<listener::Settings> {
    if !item.is_map() {
        return place(item, false).map(listener::Settings::from);
    }
    let section = item.section(&LISTEN_KEYS)?;
    let named = section.required("address", "write an address such as 127.0.0.1:8080 or unix:/run/sealproxy.sock")?;
    let open = section.quantity("open", false, boolean);
    let (peers, mode) = (section.value("peers"), section.value("mode"));
    let address = place(&named, open)?;
    if matches!(address, Address::Tcp(_)) {
        for value in [&peers, &mode].into_iter().flatten() {
            value.refuse(
                Fault::new("concerns Unix sockets alone: over TCP the kernel does not say which user calls")
                    .code("conflict")
                    .hint("take it away, or listen on unix:/path"),
            );
        }
    }
    let granted = mode.as_ref().and_then(|value| value.quantity(permissions));
    if let (None, Some(value), Some(_)) = (&peers, &mode, granted.filter(|mode| mode & 0o007 != 0)) {
        value.refuse(
            Fault::new("lets every user of this machine use your seal")
                .code("open-to-others")
                .hint("end it in 0 and let the callers into the socket's group, or list their users in `peers`"),
        );
    }
    Some(listener::Settings { address, peers: peers.map(|value| users(&value)), mode: granted })
}

fn place(place: &Value<'_>, open: bool) -> Option<Address> {
    // A port alone is a number, and is told what it lacks.
    let address = place.quantity(address)?;
    match &address {
        Address::Tcp(socket) if !is_loopback(socket) && !open => {
            place.refuse(Fault::new("other machines could reach this address, and whoever reaches it uses your seal").code("open-to-others").hint(
                "listen on loopback, or write { address: …, open: true } where the network lets in only callers you trust",
            ));
            None
        }
        _ => Some(address),
    }
}

/// The users who may call: at least one, none twice.
fn users(value: &Value<'_>) -> Vec<u32> {
    let items = value.items_or_one();
    let users = distinct(&items, "user", |item| item.quantity(user));
    if items.is_empty() && value.is_list() {
        value.refuse(
            Fault::new("names no user, so that nobody could call").hint("list the numbers of the users who may"),
        );
    }
    users
}

fn user(text: &str) -> Result<u32, Fault> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // The last number stands for "none" (chown(2)).
    let user = text.parse().ok().filter(|user| digits && *user != u32::MAX);
    user.ok_or_else(|| Fault::new("is not the number of a user").hint("`id -u NAME` prints the number of a user"))
}

/// The permissions of a socket's file: four octal digits, because three would be a decimal number to YAML.
fn permissions(text: &str) -> Result<u32, Fault> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| text.len() == 4 && text.starts_with('0'));
    match mode {
        Some(mode) if mode & 0o600 != 0o600 => {
            Err(Fault::new("keeps us from our own socket").hint("write \"0600\" or \"0660\""))
        }
        Some(mode) => Ok(mode),
        None => Err(Fault::new("is not a file mode").hint("write four octal digits in quotes: \"0600\" or \"0660\"")),
    }
}

/// Where probes and metrics are served: none twice, and none of `taken`.
pub(super) fn admin(root: &Section<'_>, taken: &[listener::Settings]) -> Vec<admin::Settings> {
    let all = || PAGES.map(|(_, page)| page).to_vec();
    let Some(value) = root.value("admin") else {
        return vec![admin::Settings { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)), serve: all() }];
    };
    let mut addresses: Vec<Address> = taken.iter().map(|listener| listener.address.clone()).collect();
    let mut listeners = Vec::new();
    for item in value.items_or_one() {
        let Some((address, serve)) = admin_listener(&item) else { continue };
        if addresses.iter().any(|taken| takes_away(taken, &Address::Tcp(address))) {
            item.refuse(Fault::listed_twice("the same address is listed twice, in `admin` or in `listen`"));
        }
        addresses.push(Address::Tcp(address));
        listeners.push(admin::Settings { address, serve: serve.unwrap_or_else(all) });
    }
    listeners
}

fn admin_listener(item: &Value<'_>) -> Option<(SocketAddr, Option<Vec<Page>>)> {
    let (place, serve) = if item.is_map() {
        let section = item.section(&ADMIN_KEYS)?;
        let place = section.required("address", "write an address such as 127.0.0.1:9090")?;
        (place, section.value("serve").map(|value| pages(&value)))
    } else {
        (item.clone(), None)
    };
    let Address::Tcp(address) = place.quantity(address)? else {
        let fault = Fault::new("the admin pages are served on TCP addresses only");
        place.refuse(fault.hint("write an IP address and a port, such as 127.0.0.1:9090"));
        return None;
    };
    if !is_loopback(&address) && serve.is_none() {
        place.refuse(
            Fault::new("other machines could reach this address, and nothing says what they may see")
                .code("open-to-others")
                .hint("write { address: …, serve: [livez, readyz, metrics] } with the pages that they need"),
        );
    }
    if !is_loopback(&address) && serve.iter().flatten().any(|page| *page == Page::Status) {
        place.refuse(
            Fault::new("other machines could reach this address, and `status` is for this one alone")
                .code("open-to-others")
                .hint("take `status` from the list, and ask for it on 127.0.0.1"),
        );
    }
    Some((address, serve))
}

fn pages(value: &Value<'_>) -> Vec<Page> {
    let items = value.items();
    let pages = distinct(&items, "page", |item| item.choice("page", &PAGES));
    if items.is_empty() && value.is_list() {
        value.refuse(
            Fault::new("names no page").hint("name one of livez, readyz, metrics, status, or take the listener away"),
        );
    }
    pages
}

/// Further names of the proxy, in lower case.
pub(super) fn hosts(root: &Section<'_>) -> Vec<String> {
    let items = root.value("hosts").map(|value| value.items()).unwrap_or_default();
    distinct(&items, "name", |item| item.text(own_name))
}

fn own_name(text: &str) -> Result<String, Fault> {
    let ipv6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text).parse::<Ipv6Addr>();
    match ipv6 {
        Ok(address) => Ok(format!("[{address}]")),
        Err(_) if text.contains("://") => Err(Fault::new("is a URL, not a host name").hint("write the host alone")),
        Err(_) if text.contains(':') => Err(Fault::new("has a port").hint("write the host alone; any port is taken")),
        Err(_) if text.ends_with('.') => Err(Fault::new("ends in a dot").hint("write the name without it")),
        Err(_) => host_name(text),
    }
}

/// A DNS name or an IPv4 address, in lower case. Underscores are no part of a host name (RFC 952), and stand in the
/// names that container networks give.
pub(super) fn host_name(text: &str) -> Result<String, Fault> {
    if !text.is_ascii() {
        return Err(Fault::new("holds a letter outside ASCII")
            .hint("write internationalised names in punycode, as they stand in certificates: xn--…"));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    // `127.1` and `0x7f.1` are addresses to some resolvers and names to others.
    let last = text.rsplit('.').next().unwrap_or_default();
    let like_address = last.starts_with(|first: char| first.is_ascii_digit())
        && last.bytes().all(|b| b.is_ascii_hexdigit() || b == b'x');
    if text.len() > 253 || !text.split('.').all(label) || (like_address && text.parse::<Ipv4Addr>().is_err()) {
        return Err(Fault::new("is not a host name").hint("write one DNS name or IP address; there are no patterns"));
    }
    Ok(text.to_ascii_lowercase())
}

fn address(text: &str) -> Result<Address, Fault> {
    match text.strip_prefix("unix:") {
        Some(path) => unix(path),
        None => tcp(text).map(Address::Tcp),
    }
}

fn unix(path: &str) -> Result<Address, Fault> {
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(Fault::new("is not the absolute path of a socket").hint("write unix:/run/sealproxy/http.sock"));
    }
    if path.len() > MAX_SOCKET_PATH || path.contains(char::is_control) {
        return Err(Fault::new(format!("is no path of a socket: those have at most {MAX_SOCKET_PATH} bytes"))
            .hint("write a shorter one, such as unix:/run/sealproxy/http.sock"));
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

/// `sun_path` of unix(7) on Linux, without the byte that ends it.
const MAX_SOCKET_PATH: usize = 107;

fn tcp(text: &str) -> Result<SocketAddr, Fault> {
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().map_err(|_| {
        let hint = if text.starts_with("http") {
            "write address and port alone, such as 127.0.0.1:8080"
        } else if text.rsplit_once(':').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok()) {
            "put an IPv6 address in brackets, and its port behind them: [::1]:8080"
        } else if text.starts_with([':', '*']) || text.bytes().all(|byte| byte.is_ascii_digit()) {
            "name the address too: 127.0.0.1:8080, or 0.0.0.0:8080 for all of this machine's"
        } else if text.parse::<IpAddr>().is_ok() {
            "add a port, such as 127.0.0.1:8080 or [::1]:8080"
        } else {
            "write an IP address and a port, such as 127.0.0.1:8080, or unix:/path"
        };
        Fault::new("is not an address to listen on").hint(hint)
    })
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Port 0 is another port each time.
fn takes_away(taken: &Address, address: &Address) -> bool {
    !matches!(address, Address::Tcp(socket) if socket.port() == 0) && taken == address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_or_paths() {
        for (text, expected) in
            [("127.0.0.1:8080", "127.0.0.1:8080"), ("localhost:0", "127.0.0.1:0"), ("[::1]:80", "[::1]:80")]
        {
            assert_eq!(address(text).ok(), Some(Address::Tcp(expected.parse().expect("an address"))), "{text}");
        }
        assert_eq!(address("unix:/run/s.sock"), Ok(Address::Unix("/run/s.sock".into())));
        let long = format!("unix:/{}", "x".repeat(107));
        for text in [
            "8080",
            ":8080",
            "*:8080",
            "127.0.0.1",
            "::1",
            "::1:80:",
            "host:8080",
            "http://127.0.0.1:80",
            "localhost:",
            "localhost:70000",
            "unix:",
            "unix:s",
            "unix:/",
            &long,
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn permissions_are_four_octal_digits_that_let_us_in() {
        assert_eq!((permissions("0660"), permissions("0600")), (Ok(0o660), Ok(0o600)));
        for text in ["660", "432", "0060", "0400", "1660", "06600", "0x60", "0o660", "rw", "", "+660"] {
            assert!(permissions(text).is_err(), "{text}");
        }
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!((user("0"), user("65534")), (Ok(0), Ok(65534)));
        for text in ["root", "", "-1", "+1", "1.0", "4294967295", "4294967296"] {
            assert!(user(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mapped_loopback_is_loopback() {
        for (text, loopback) in
            [("[::ffff:127.0.0.1]:1", true), ("127.9.9.9:1", true), ("[::]:1", false), ("0.0.0.0:1", false)]
        {
            assert_eq!(is_loopback(&text.parse().expect("an address")), loopback, "{text}");
        }
    }

    #[test]
    fn own_names_are_host_names_in_lower_case() {
        for (text, name) in [
            ("Proxy.Internal", "proxy.internal"),
            ("seal_proxy", "seal_proxy"),
            ("10.0.0.5", "10.0.0.5"),
            ("FD00::1", "[fd00::1]"),
            ("[fd00::1]", "[fd00::1]"),
            ("a.b.c1", "a.b.c1"),
            ("x.0a.de", "x.0a.de"),
        ] {
            assert_eq!(own_name(text).as_deref(), Ok(name), "{text}");
        }
        for text in [
            "a:80",
            "http://a",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "a b",
            "*.a",
            "é.fr",
            "a/b",
            "127.1",
            "0x7f.0x1",
            "1",
            "[fd00::1]:80",
            "u@h",
        ] {
            assert!(own_name(text).is_err(), "{text}");
        }
    }
}
