//! `routes`: which paths go to which bank, with which methods, sealed or not.

use std::collections::BTreeMap;

use http::Method;

use super::Upstream;
use super::finding::Fault;
use super::quantity::boolean;
use super::section::{Section, Value, distinct};
use crate::proxy::api::{Api, Environment};
use crate::proxy::route::Settings;

pub(super) const KEYS: [&str; 4] = ["path", "upstream", "methods", "seal"];
const METHODS: [(&str, Method); 7] = [
    ("GET", Method::GET),
    ("HEAD", Method::HEAD),
    ("POST", Method::POST),
    ("PUT", Method::PUT),
    ("PATCH", Method::PATCH),
    ("DELETE", Method::DELETE),
    ("OPTIONS", Method::OPTIONS),
];
/// How many of them pass on a sealed route that names none: all but OPTIONS.
const DEFAULT_METHODS: usize = 6;

/// Reads all routes. `names` are the upstreams of the file, `upstreams` those of them that are legal.
pub(super) fn routes(root: &Section<'_>, names: &[&str], upstreams: &BTreeMap<String, Upstream>) -> Vec<Settings> {
    const HINT: &str = "write at least { path: /…/, upstream: … }: what matches no route is refused";
    let Some(value) = root.required("routes", HINT) else { return Vec::new() };
    let items = value.items();
    if items.is_empty() && value.is_list() {
        value.refuse(Fault::new("is empty").hint(HINT));
    }
    let mut routes: Vec<Settings> = Vec::new();
    let mut places: Vec<String> = Vec::new();
    for item in items {
        let Some(route) = route(&item, names) else { continue };
        if let Some(upstream) = upstreams.get(&route.upstream) {
            check_environment(&item, &route, upstream);
            warn_of_registrations(&item, &route);
        }
        if let Some(other) = routes.iter().position(|other| collide(&route, other, upstreams)) {
            let hint = "keep one of the two; a route's methods stand in one list";
            let fault = Fault::new(format!("{} has the same path at the same bank", places[other]));
            item.field("path").refuse(fault.code("listed-twice").hint(hint));
        }
        routes.push(route);
        places.push(item.key);
    }
    routes
}

fn route(item: &Value<'_>, names: &[&str]) -> Option<Settings> {
    let section = item.section(&KEYS)?;
    let path = section.required("path", "write the path that this route is for").and_then(|value| value.text(path));
    let known: Vec<(&str, &str)> = names.iter().map(|name| (*name, *name)).collect();
    let upstream = section.required("upstream", "name the upstream that it goes to");
    let upstream = upstream.and_then(|value| value.choice("upstream", &known));
    let seal = section.quantity("seal", true, boolean);
    let methods = match section.value("methods") {
        Some(value) => methods(&value),
        None if seal => METHODS.into_iter().take(DEFAULT_METHODS).map(|(_, method)| method).collect(),
        None => {
            section.required("methods", "list the methods that may pass without a seal, such as [POST]");
            Vec::new()
        }
    };
    Some(Settings { path: path?, upstream: upstream?.to_owned(), methods, seal })
}

fn methods(value: &Value<'_>) -> Vec<Method> {
    let items = value.items();
    if items.is_empty() && value.is_list() {
        value.refuse(Fault::new("names no method").hint("name one, or take the route away"));
    }
    distinct(&items, "method", method)
}

fn method(item: &Value<'_>) -> Option<Method> {
    let never = |text: &str| match text {
        "CONNECT" => Err(Fault::new("is never proxied: what is inside a tunnel cannot be sealed")),
        "TRACE" => Err(Fault::new("is never proxied: it would show the seal to whoever asks")),
        _ => Ok(()),
    };
    item.text(never)?;
    item.choice("method", &METHODS)
}

/// A path that the proxy can find: one that a lenient reader could take for another is refused at run time.
fn path(text: &str) -> Result<String, Fault> {
    let fault = |reason: &str, hint: &str| Err(Fault::new(reason).hint(hint));
    if text.contains("://") {
        return fault("is a URL, not a path", "write the path alone; the host stands in the upstream's `url`");
    }
    if !text.starts_with('/') {
        return fault("does not begin with `/`", "write the path as callers send it, from the first `/`");
    }
    if text.contains(['?', '#']) {
        return fault("has a query or a fragment", "write the path alone: queries pass unseen");
    }
    if text.contains(['{', '}']) || text.split('/').any(|segment| matches!(segment, "*" | "**")) {
        return fault("holds a pattern", "write a path that ends in `/` for all that begins so, or one exact path");
    }
    if !text.bytes().all(|byte| matches!(byte, 0x21..=0x7e)) {
        return fault("holds a character outside visible ASCII", "end the path in `/` before that segment");
    }
    if text.contains(['%', ';', '\\']) || text.contains("//") {
        return fault(
            "holds `%`, `;`, `\\` or `//`, which two servers could read differently",
            "end the path in `/` before that segment",
        );
    }
    if text.split('/').any(|segment| matches!(segment, "." | "..")) {
        return fault("holds a dot segment", "write the path that it leads to");
    }
    Ok(text.to_owned())
}

/// The two environments share a host. A route that spans both is checked again for each request.
fn check_environment(item: &Value<'_>, route: &Settings, upstream: &Upstream) {
    let api: &Api = upstream.api;
    let spans = route.path.ends_with('/') && api.sandbox_prefix.starts_with(&route.path);
    let (here, there) = match (upstream.environment, api.environment(&route.path)) {
        (Environment::Production, Environment::Sandbox) => ("production", "sandbox"),
        (Environment::Sandbox, Environment::Production) if !spans => ("sandbox", "production"),
        _ => return,
    };
    let hint = format!("paths of the sandbox begin with {}, those of production do not", api.sandbox_prefix);
    let reason = format!("this is a path of {there}, and the upstream `{}` is {here}", route.upstream);
    item.field("path").refuse(Fault::new(reason).code("other-environment").hint(hint));
}

/// The registration endpoints ask for no token, only for the QWAC that every request through here presents.
fn warn_of_registrations(item: &Value<'_>, route: &Settings) {
    let changes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    if !covers_registrations(&route.path) || !route.methods.iter().any(|method| changes.contains(method)) {
        return;
    }
    let reason = "this covers …/oauth2/registrations: any local process could add a key to your registration at the bank, or delete it";
    let place = item.field("path");
    place.report.warning(
        &place.key,
        Fault::new(reason).code("open-registrations").hint("name what is needed, such as path: …/oauth2/token"),
    );
}

/// Whether `[/sandbox]/BRAND/oauth2/registrations` or something below it can be reached by a route's path.
fn covers_registrations(path: &str) -> bool {
    let inner = path.strip_prefix("/sandbox/").unwrap_or(path.strip_prefix('/').unwrap_or(path));
    let segments: Vec<&str> = inner.split('/').collect();
    matches!(segments.as_slice(), [""] | [_, ""] | [_, "oauth2", ""] | [_, "oauth2", "registrations", ..])
}

/// Whether two routes answer to the same path of the same bank: one would never be found.
fn collide(one: &Settings, other: &Settings, upstreams: &BTreeMap<String, Upstream>) -> bool {
    let origin = |route: &Settings| upstreams.get(&route.upstream).map(|upstream| &upstream.settings.origin);
    let same_bank = origin(one).is_some() && origin(one) == origin(other);
    one.path == other.path && (one.upstream == other.upstream || same_bank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_that_can_be_found() {
        let deep = "/a".repeat(65);
        for text in ["/", "/becm/", "/becm/oauth2/token", "/a.b/..c/~d:@!$&'()*+,=/", &deep] {
            assert_eq!(path(text).as_deref(), Ok(text));
        }
        for text in [
            "becm/",
            "https://bank/becm",
            "/a?b",
            "/a#b",
            "/a/./b",
            "/a/..",
            "/../",
            "/%61",
            "/a%2fb",
            "/%2e%2e/",
            "/a;b/",
            "/a\\b",
            "/a//b",
            "//",
            "/a b",
            "/é",
            "/a/*",
            "/a/**/b",
            "/a/{id}",
            "/a\n",
        ] {
            assert!(path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_that_cover_registrations_are_known() {
        for path in [
            "/",
            "/becm/",
            "/becm/oauth2/",
            "/becm/oauth2/registrations",
            "/becm/oauth2/registrations/",
            "/sandbox/",
            "/sandbox/becm/",
            "/sandbox/becm/oauth2/",
            "/sandbox/becm/oauth2/registrations",
        ] {
            assert!(covers_registrations(path), "{path}");
        }
        for path in [
            "/becm",
            "/becm/oauth2",
            "/becm/oauth2/token",
            "/becm/stet-psd2-api/",
            "/sandbox/becm/stet-psd2-api/",
            "/sandbox/becm/oauth2/token",
        ] {
            assert!(!covers_registrations(path), "{path}");
        }
    }
}
