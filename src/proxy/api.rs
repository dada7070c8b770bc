//! What is true of a bank's API, sealed or not, as data: which headers pass, which path segments are words
//! rather than somebody's data, who may use them, how its environments are told apart. Nothing here decides anything.

use http::Method;

/// A bank's API.
#[derive(Debug, PartialEq, Eq)]
pub struct Api {
    /// The profile's name in the configuration.
    pub name: &'static str,
    /// Request headers that may reach the bank on a sealed route.
    pub headers: &'static [Pattern],
    /// Path segments that may stand in logs. Every other segment is written `{id}`.
    pub words: &'static [&'static str],
    /// Path segments that only providers of a role may use.
    pub roles: &'static [Reserved],
    /// The path segment after the brand, below which they stand, behind a version.
    pub resources: &'static str,
    /// What the paths of the sandbox begin with, and those of production do not.
    pub sandbox_prefix: &'static str,
}

/// A path segment that only providers of a role may use.
#[derive(Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The segment.
    pub word: &'static str,
    /// The role's name in TS 119 495.
    pub role: &'static str,
    /// What a request for it does that others do not: a route that lets this method through is taken to be meant for
    /// it, though it may not name it. `None`: routes that do not name it say nothing of it.
    pub method: Option<Method>,
}

/// A header name or a family of them, in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This name.
    Exact(&'static str),
    /// Every name that begins so.
    Prefix(&'static str),
}

impl Pattern {
    /// Whether a lower-case header name is meant.
    pub fn matches(self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix),
        }
    }
}

/// One of a bank's two environments. They share a host; a request must not stray from one into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// Real accounts, real money.
    Production,
    /// The bank's test environment.
    Sandbox,
}

impl Api {
    /// The environment that a path belongs to.
    pub fn environment(&self, path: &str) -> Environment {
        if path.starts_with(self.sandbox_prefix) { Environment::Sandbox } else { Environment::Production }
    }

    /// What a route with this path and these methods lets through that only providers of a role may ask for.
    pub fn reserved<'a>(&'a self, path: &'a str, methods: &'a [Method]) -> impl Iterator<Item = &'a Reserved> {
        let is_above = self.is_above_resources(path);
        self.roles.iter().filter(move |reserved| {
            let is_meant = reserved.method.as_ref().is_some_and(|method| methods.contains(method));
            names(path, reserved.word) || (is_above && is_meant)
        })
    }

    /// Whether `[/sandbox]/BRAND/RESOURCES/VERSION/…` can be reached by the path of a route that does not name what.
    fn is_above_resources(&self, path: &str) -> bool {
        let inner = path.strip_prefix(self.sandbox_prefix).unwrap_or(path.strip_prefix('/').unwrap_or(path));
        match inner.split('/').collect::<Vec<_>>().as_slice() {
            [""] | [_, ""] => true,
            [_, resources, ""] | [_, resources, _, ""] => *resources == self.resources,
            _ => false,
        }
    }
}

/// Whether a word stands among a path's segments.
pub fn names(path: &str, word: &str) -> bool {
    path.split('/').any(|segment| segment == word)
}

/// The STET API of Banque Européenne Crédit Mutuel and its sister brands.
pub const BECM: Api = Api {
    name: "becm",
    headers: &[
        Pattern::Prefix("accept"),
        Pattern::Exact("authorization"),
        Pattern::Exact("cache-control"),
        Pattern::Exact("content-disposition"),
        Pattern::Exact("content-encoding"),
        Pattern::Exact("content-language"),
        Pattern::Exact("content-type"),
        Pattern::Prefix("if-"),
        Pattern::Prefix("psu-"),
        Pattern::Exact("range"),
        Pattern::Prefix("tpp-"),
        Pattern::Exact("user-agent"),
        Pattern::Exact("x-request-id"),
    ],
    words: &[
        "accounts",
        "balances",
        "banquetransatlantique",
        "becm",
        "beobank",
        "cic",
        "cic-banqueprivee",
        "cm",
        "consents",
        "end-user-identity",
        "funds-confirmations",
        "monabanq",
        "o-confirmation",
        "confirmation",
        "oauth2",
        "owners",
        "payment-requests",
        "registrations",
        "sandbox",
        "stet-psd2-api",
        "targobank-es",
        "token",
        "transactions",
        "trusted-beneficiaries",
        "v1",
        "v1.1",
        "v2.0",
        "v2.1",
    ],
    roles: &[
        Reserved { word: "accounts", role: "PSP_AI", method: None },
        Reserved { word: "end-user-identity", role: "PSP_AI", method: None },
        Reserved { word: "funds-confirmations", role: "PSP_IC", method: None },
        Reserved { word: "payment-requests", role: "PSP_PI", method: Some(Method::POST) },
        Reserved { word: "trusted-beneficiaries", role: "PSP_AI", method: None },
    ],
    resources: "stet-psd2-api",
    sandbox_prefix: "/sandbox/",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_needs_the_roles_of_what_it_names_or_is_meant_for() {
        let of = |path: &str, methods: &[Method]| -> Vec<&str> {
            BECM.reserved(path, methods).map(|reserved| reserved.word).collect()
        };
        for above in [
            "/",
            "/becm/",
            "/sandbox/becm/",
            "/becm/stet-psd2-api/",
            "/becm/stet-psd2-api/v2.1/",
            "/sandbox/cic/stet-psd2-api/",
        ] {
            assert_eq!(of(above, &[Method::GET, Method::POST]), ["payment-requests"], "{above}");
            assert_eq!(of(above, &[Method::GET]), [""; 0], "{above}");
        }
        for beside in
            ["/becm/oauth2/", "/becm/oauth2/token", "/becm/stet-psd2-api", "/becm/stet-psd2-api/v2.1/consents/"]
        {
            assert_eq!(of(beside, &[Method::GET, Method::POST]), [""; 0], "{beside}");
        }
        assert_eq!(of("/becm/stet-psd2-api/v2.1/payment-requests/", &[Method::GET]), ["payment-requests"]);
        assert_eq!(of("/becm/stet-psd2-api/v2.1/accounts", &[Method::POST]), ["accounts"]);
    }
}
