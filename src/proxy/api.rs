//! What is true of a bank's API, sealed or not, as data: which headers pass, which path segments are words
//! rather than somebody's data, how its environments are told apart. Nothing here decides anything.

/// A bank's API.
#[derive(Debug, PartialEq, Eq)]
pub struct Api {
    /// The profile's name in the configuration.
    pub name: &'static str,
    /// Request headers that may reach the bank on a sealed route.
    pub headers: &'static [Pattern],
    /// Path segments that may stand in logs. Every other segment is written `{id}`.
    pub words: &'static [&'static str],
    /// Path segments that only providers of a role may use, with the role's name in TS 119 495.
    pub roles: &'static [(&'static str, &'static str)],
    /// What the paths of the sandbox begin with, and those of production do not.
    pub sandbox_prefix: &'static str,
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
        ("accounts", "PSP_AI"),
        ("end-user-identity", "PSP_AI"),
        ("funds-confirmations", "PSP_IC"),
        ("payment-requests", "PSP_PI"),
        ("trusted-beneficiaries", "PSP_AI"),
    ],
    sandbox_prefix: "/sandbox/",
};
