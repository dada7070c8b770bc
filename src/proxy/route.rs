//! Which upstream a request goes to: a table built at load, exact paths and prefixes, longest first. Refuses
//! requests that are not ours and targets that two readers could take to different places.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method};

use super::api::{Api, Environment};
use super::metrics::RouteMetrics;
use super::problem::{AskedHost, Problem};
use super::redact::Words;
use super::target::{Ambiguity, lenient_reading, origin_form};
use crate::seal::Sealer;
use crate::upstream::{Origin, Upstream};

/// One route of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Ends in `/`: a prefix; otherwise the exact path.
    pub path: String,
    /// The upstream's name.
    pub upstream: String,
    /// The methods that pass.
    pub methods: Vec<Method>,
    /// Whether requests are sealed.
    pub seal: bool,
}

/// All that one request needs to know of where it goes. Immutable, from one generation.
pub struct Route {
    /// As configured.
    pub settings: Settings,
    /// Where the bank is.
    pub origin: Origin,
    /// The bank, as one identity reaches it; `None`: the identity cannot be used at present.
    pub upstream: Option<Arc<Upstream>>,
    /// Whether its requests are sealed, and who does it.
    pub sealing: Sealing,
    /// What is true of the bank's API.
    pub api: &'static Api,
    /// Which of the bank's environments this upstream is.
    pub environment: Environment,
    /// Headers that pass beside those of the API.
    pub pass: Arc<[HeaderName]>,
    /// The `Host` that is sent and signed.
    pub host: HeaderValue,
    /// The handles of its metrics.
    pub metrics: Arc<RouteMetrics>,
}

/// What becomes of a route's requests before they go.
pub enum Sealing {
    /// They go as they are.
    Never,
    /// Each is sealed.
    By(Arc<Sealer>),
    /// Each would have to be, and nobody can at present: none goes.
    ByNobody,
}

impl Sealing {
    /// Of a route that `seals`, by whoever does it there at present.
    pub fn new(seals: bool, sealer: Option<Arc<Sealer>>) -> Self {
        match (seals, sealer) {
            (false, _) => Self::Never,
            (true, Some(sealer)) => Self::By(sealer),
            (true, None) => Self::ByNobody,
        }
    }

    /// Whoever seals.
    pub(super) fn sealer(&self) -> Option<&Arc<Sealer>> {
        match self {
            Self::By(sealer) => Some(sealer),
            Self::Never | Self::ByNobody => None,
        }
    }
}

impl Route {
    /// Whether what goes there has to be sealed, whoever can.
    pub(super) fn is_sealed(&self) -> bool {
        !matches!(self.sealing, Sealing::Never)
    }

    /// The upstream's name in the configuration.
    pub fn upstream_name(&self) -> &str {
        &self.settings.upstream
    }

    /// The bank, or why nobody gets there.
    pub(super) fn upstream(&self) -> Result<&Arc<Upstream>, Problem> {
        self.upstream.as_ref().ok_or(Problem::IdentityUnusable)
    }

    /// Whether a request for this target may take this route.
    pub(super) fn admit(&self, method: &Method, target: &PathAndQuery) -> Result<(), Problem> {
        self.admit_path(target.path())?;
        if !self.settings.methods.contains(method) {
            return Err(Problem::MethodNotAllowed(self.allow()));
        }
        Ok(())
    }

    fn admit_path(&self, path: &str) -> Result<(), Problem> {
        let is_ours = self.api.environment(path) == self.environment;
        if is_ours { Ok(()) } else { Err(Problem::OtherEnvironment(self.environment)) }
    }

    fn allow(&self) -> String {
        self.settings.methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// The routes of one generation. Loaded once per request.
pub struct Routes {
    edition: u64,
    all: Vec<Arc<Route>>,
    own: Table,
    /// By host, then by port.
    of_banks: HashMap<String, BTreeMap<u16, Table>>,
    names: Vec<String>,
    words: Words,
    listing: String,
}

/// What a request was found to be about.
pub struct Found {
    /// Where it goes.
    pub route: Arc<Route>,
    /// Path and query, byte for byte.
    pub target: PathAndQuery,
}

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Over TCP: whoever can make this machine open a connection may have sent it, a web page included.
    Tcp,
    /// Over a Unix socket: whatever the authority says, it was addressed to the proxy.
    Unix,
    /// Over a Unix socket, by a user who may not.
    Stranger,
}

impl Routes {
    /// Builds the tables. `names` are further host names of the proxy itself. Routes of the same `edition` come from
    /// the same configuration, in the same order, and differ in certificates and keys at most.
    pub fn new(edition: u64, routes: Vec<Route>, names: Vec<String>) -> Self {
        let words = Words::new(routes.iter().map(|route| route.api), routes.iter().map(|route| &*route.settings.path));
        let routes: Vec<Arc<Route>> = routes.into_iter().map(Arc::new).collect();
        let mut of_banks: HashMap<String, BTreeMap<u16, Table>> = HashMap::new();
        for route in &routes {
            let Origin { host, port } = route.origin.clone();
            of_banks.entry(host).or_default().entry(port).or_default().insert(route);
        }
        let listing = listing(&routes);
        Self { own: Table::of_proxy(&routes), all: routes, edition, of_banks, names, words, listing }
    }

    /// A route of an earlier generation, as it is in this one: the same request, another certificate or seal. `None`
    /// where the configuration has changed, and a request that was prepared for the one may not fit the other.
    pub fn renewed(&self, earlier: &Self, route: &Arc<Route>) -> Option<&Arc<Route>> {
        let index = earlier.all.iter().position(|known| Arc::ptr_eq(known, route))?;
        self.all.get(index).filter(|_| self.edition == earlier.edition)
    }

    /// How requests may be named in logs and problems.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Finds the route of a request, or says why it has none.
    pub fn find(&self, head: &Parts, transport: Transport) -> Result<Found, Problem> {
        if transport == Transport::Stranger {
            return Err(Problem::Stranger);
        }
        if head.method == Method::CONNECT {
            return Err(Problem::Connect);
        }
        if head.uri.scheme().is_none() && head.uri.authority().is_some() {
            return Err(Problem::AmbiguousTarget(Ambiguity::Authority));
        }
        let authority = authority(head)?;
        let table = self.table(&authority, transport)?;
        refuse_other_sites(&head.headers, &authority)?;
        let target = origin_form(&head.uri).map_err(Problem::AmbiguousTarget)?;
        let route = self.lookup(table, &target)?;
        Ok(Found { route: Arc::clone(route), target })
    }

    fn lookup<'a>(&self, table: &'a Table, target: &PathAndQuery) -> Result<&'a Arc<Route>, Problem> {
        let reading = lenient_reading(target.path(), target.query()).map_err(Problem::AmbiguousTarget)?;
        let entry = table.find(target.path()).ok_or_else(|| Problem::NoRoute(self.listing.clone()))?;
        if reading != target.path() && !table.find(&reading).is_some_and(|other| other.is(entry)) {
            return Err(Problem::AmbiguousTarget(Ambiguity::OtherRoute));
        }
        match entry {
            // Where the bank reads it leniently, it is in the other environment all the same.
            Entry::Route(route) if reading != target.path() => route.admit_path(&reading).map(|()| route),
            Entry::Route(route) => Ok(route),
            Entry::Several(hosts) => Err(Problem::NameTheBank(hosts.clone())),
        }
    }

    /// The table of whoever the authority names: a bank or the proxy.
    fn table(&self, authority: &Caller, transport: Transport) -> Result<&Table, Problem> {
        let of_host = self.of_banks.get(authority.name());
        match of_host.and_then(|of_host| authority.ports().find_map(|port| of_host.get(&port))) {
            Some(table) => Ok(table),
            None if transport == Transport::Unix || self.is_own(authority) => Ok(&self.own),
            None => Err(Problem::Misdirected(AskedHost::new(&authority.host, authority.port))),
        }
    }

    fn is_own(&self, authority: &Caller) -> bool {
        authority.host == "localhost"
            || self.names.contains(&authority.host)
            || authority.name().parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// The first routes in words, and how many more there are.
fn listing(routes: &[Arc<Route>]) -> String {
    let mut words: Vec<String> = routes.iter().take(LISTED).map(describe).collect();
    if let Some(more @ 1..) = routes.len().checked_sub(LISTED) {
        words.push(format!("and {more} more"));
    }
    words.join(", ")
}

/// What a reader of an answer looks through.
const LISTED: usize = 50;

fn describe(route: &Arc<Route>) -> String {
    let Settings { path, upstream, .. } = &route.settings;
    format!("{} {path} ({upstream}, {})", route.allow(), if route.settings.seal { "sealed" } else { "not sealed" })
}

/// The pairs of paths that a request naming the proxy cannot reach: routes of different upstreams, one within the
/// other. They need the bank's name.
pub fn nested(routes: &[Settings]) -> Vec<(&Settings, &Settings)> {
    let mut pairs = Vec::new();
    for (index, one) in routes.iter().enumerate() {
        for other in &routes[index + 1..] {
            if one.upstream != other.upstream && (contains(&one.path, &other.path) || contains(&other.path, &one.path))
            {
                pairs.push((one, other));
            }
        }
    }
    pairs
}

fn contains(outer: &str, inner: &str) -> bool {
    outer == inner || (outer.ends_with('/') && inner.starts_with(outer))
}

/// Exact paths and prefixes. Its cost depends on the path's segments, not on the number of routes.
#[derive(Default)]
struct Table {
    exact: HashMap<String, Entry>,
    prefixes: HashMap<String, Entry>,
    /// Bytes of the longest prefix.
    longest: usize,
}

enum Entry {
    Route(Arc<Route>),
    /// Routes of several upstreams nest here; the text names their hosts.
    Several(String),
}

impl Entry {
    fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Table {
    /// The table for requests that name the proxy: every route that nests with none of another upstream.
    fn of_proxy(routes: &[Arc<Route>]) -> Self {
        let mut table = Self::default();
        let mut several: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for route in routes {
            let path = route.settings.path.as_str();
            let nests = routes.iter().any(|other| {
                other.settings.upstream != route.settings.upstream
                    && (contains(&other.settings.path, path) || contains(path, &other.settings.path))
            });
            if nests {
                several.entry(path).or_default().push(route.origin.to_string());
            } else {
                table.insert(route);
            }
        }
        for (path, hosts) in several {
            table.put(path, Entry::Several(hosts.join(", ")));
        }
        table
    }

    fn insert(&mut self, route: &Arc<Route>) {
        self.put(&route.settings.path, Entry::Route(Arc::clone(route)));
    }

    fn put(&mut self, path: &str, entry: Entry) {
        if path.ends_with('/') {
            self.longest = self.longest.max(path.len());
            self.prefixes.insert(path.to_owned(), entry);
        } else {
            self.exact.insert(path.to_owned(), entry);
        }
    }

    /// The exact path, else the longest prefix.
    fn find(&self, path: &str) -> Option<&Entry> {
        if let Some(entry) = self.exact.get(path) {
            return Some(entry);
        }
        // Of a caller's ten thousand slashes only those count that a configured prefix could end with.
        let mut ends = path.rmatch_indices('/').map(|(index, _)| index + 1).filter(|end| *end <= self.longest);
        ends.find_map(|end| self.prefixes.get(&path[..end]))
    }
}

/// The authority that a caller addressed, in lower case.
struct Caller {
    host: String,
    port: Option<u16>,
}

impl Caller {
    fn new(authority: &Authority) -> Result<Self, Problem> {
        if authority.as_str().contains('@') {
            return Err(Problem::UserInfo);
        }
        let host = authority.host();
        // `http` reads a host in brackets up to the bracket, and `+443` is a number to Rust.
        let port = match &authority.as_str()[host.len()..] {
            "" | ":" => None,
            rest => {
                let digits = rest.strip_prefix(':').filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
                Some(digits.and_then(|port| port.parse().ok()).ok_or(Problem::BadHost)?)
            }
        };
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }

    /// Whether two ways of saying it mean the same: the default ports of either scheme may be left out.
    fn agrees(&self, other: &Self) -> bool {
        let port = |caller: &Self| caller.port.filter(|port| !matches!(port, 80 | 443));
        self.host == other.host && port(self) == port(other)
    }

    /// The host as it stands in an [`Origin`]: an IPv6 address without its brackets.
    fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The ports of a bank that may be meant, the one that was named first. A caller of `http://` leaves out 80, or a
    /// library puts it there, and means the bank all the same.
    fn ports(&self) -> impl Iterator<Item = u16> {
        let of_https = self.port.is_none_or(|port| port == 80).then_some(443);
        self.port.into_iter().chain(of_https)
    }
}

/// The absolute form's authority (or `:authority`), else `Host`. Both present must say the same.
fn authority(head: &Parts) -> Result<Caller, Problem> {
    if head.uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(Problem::BadScheme);
    }
    let absolute = head.uri.authority().map(Caller::new).transpose()?;
    let host = host_header(&head.headers)?;
    match (absolute, host) {
        (Some(absolute), Some(host)) if !absolute.agrees(&host) => Err(Problem::HostMismatch),
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
        (None, None) => Err(Problem::NoHost),
    }
}

fn host_header(headers: &HeaderMap) -> Result<Option<Caller>, Problem> {
    let mut values = headers.get_all(HOST).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(Problem::DuplicateHeader(HOST)),
        (Some(value), None) => {
            let authority = Authority::try_from(value.as_bytes()).map_err(|_| Problem::BadHost)?;
            // A comma is legal in a reg-name (RFC 3986), but in `Host` it is a list that two readers cut differently.
            if authority.as_str().contains(',') {
                return Err(Problem::BadHost);
            }
            Caller::new(&authority).map(Some)
        }
    }
}

/// Whether a browser says that another site is behind a request.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses what a browser sends on behalf of another site: no web page may make a developer's machine seal.
fn refuse_other_sites(headers: &HeaderMap, authority: &Caller) -> Result<(), Problem> {
    if headers.get_all(SEC_FETCH_SITE).iter().any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none")) {
        return Err(Problem::CrossSite);
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    if origins.all(|origin| is_same_origin(origin, authority)) { Ok(()) } else { Err(Problem::CrossSite) }
}

fn is_same_origin(origin: &HeaderValue, authority: &Caller) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let origin = origin.and_then(|(_, authority)| authority.parse::<Authority>().ok());
    origin.and_then(|origin| Caller::new(&origin).ok()).is_some_and(|origin| origin.agrees(authority))
}
