//! The text of a configuration file to a tree of scalars, lists and maps, with environment variables expanded inside
//! scalars. The only file that knows `serde_yaml`; must not know any setting.

use std::collections::HashSet;
use std::fmt;
use std::mem;

use serde::Deserialize;
use serde::de::{Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::finding::{Fault, Report};

/// What a YAML document is made of. A map keeps its order, and equal keys until they are reported.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    /// A value whose fault has been reported: nobody needs to report it again.
    Refused,
    Scalar(Scalar),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

/// A number, a boolean or text.
#[derive(Clone, PartialEq)]
pub(super) struct Scalar {
    /// Its value, variables expanded.
    pub(super) text: String,
    /// How YAML reads it.
    pub(super) kind: Kind,
    /// As the file has it, where variables were expanded: their values are never shown.
    pub(super) unexpanded: Option<String>,
}

/// How YAML reads a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Number,
    Text,
}

impl Scalar {
    /// The scalar as it may stand in a message.
    pub(super) fn shown(&self) -> String {
        match &self.unexpanded {
            None if self.text.is_empty() => "the text".to_owned(),
            None => format!("`{}`", self.text),
            Some(unexpanded) => format!("the value of `{unexpanded}`"),
        }
    }
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.shown())
    }
}

impl Node {
    /// Parses a file's text and expands its variables. `None`: it is no YAML that we read, and the report says why.
    /// Faults of single values are reported too, and the tree goes on without them.
    pub(super) fn read(text: &str, env: &dyn Fn(&str) -> Option<String>, report: &Report) -> Option<Self> {
        match parse(text) {
            Ok(mut node) => {
                Expansion { env, report }.node(&mut node, "");
                Some(node)
            }
            Err(fault) => {
                report.error("", fault);
                None
            }
        }
    }

    /// What it is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null | Self::Refused => "nothing",
            Self::Scalar(scalar) => match scalar.kind {
                Kind::Bool => "a boolean",
                Kind::Number => "a number",
                Kind::Text => "text",
            },
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

fn parse(text: &str) -> Result<Node, Fault> {
    let blank = |line: &str| matches!(line.trim(), "" | "---" | "...") || line.trim().starts_with('#');
    if text.trim_start_matches('\u{feff}').lines().all(blank) {
        return Err(Fault::new("the file is empty")
            .code("empty-file")
            .hint("`sealproxy init becm` prints a configuration to begin with"));
    }
    refuse_depth(text)?;
    serde_yaml::from_str::<IgnoredAny>(text).map_err(|error| syntax(text, &error))?;
    refuse_references(text)?;
    serde_yaml::from_str(text).map_err(|error| syntax(text, &error))
}

/// Refuses anchors, aliases and tags, with the parser itself as the judge of what is one.
///
/// `&`, `*` and `!` are indicators in the same places, and ordinary characters in the same others: in quotes,
/// comments, block scalars and within words. With each of them written `*` there are no anchors left that an alias
/// could name: whatever was an anchor, an alias or a tag has become an error, and nothing else has changed.
/// `IgnoredAny` expands no alias, so that a few lines cannot grow to gigabytes here.
fn refuse_references(text: &str) -> Result<(), Fault> {
    serde_yaml::from_str::<IgnoredAny>(&text.replace(['&', '!'], "*")).map_err(|error| reference(&error)).map(drop)
}

fn reference(error: &serde_yaml::Error) -> Fault {
    let line = error.location().map_or_else(String::new, |location| format!("line {}: ", location.line()));
    Fault::new(format!("{line}anchors, aliases and tags (`&name`, `*name`, `!name`) are not supported"))
        .code("unsupported-yaml")
        .hint("write the value out; text that begins with one of these characters goes in quotes")
}

/// The parser looks through all open brackets at every token: a file of nothing else would take hours.
fn refuse_depth(text: &str) -> Result<(), Fault> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(Fault::new("brackets stand within brackets hundreds deep")
                .code("unsupported-yaml")
                .hint("is it a configuration at all?"));
        }
    }
    Ok(())
}

/// Above the parser's own limit, which it checks only once it has read the whole file.
const MAX_DEPTH: usize = 500;

fn syntax(text: &str, error: &serde_yaml::Error) -> Fault {
    let line = error.location().and_then(|location| text.lines().nth(location.line().saturating_sub(1)));
    let fault = Fault::new(format!("this is not YAML that we read: {error}")).code("not-yaml");
    // An alias of an anchor that there is not is an alias first.
    if error.to_string().starts_with("unknown anchor") {
        return reference(error);
    }
    if error.to_string().contains("more than one document") {
        let fault = Fault::new("the file holds more than one YAML document").code("not-yaml");
        return fault.hint("take the line `---` between them away, or give each a file of its own");
    }
    if line.is_some_and(|line| line.contains("${")) {
        return fault.hint("put \"${NAME}\" in quotes: between { and } its brace ends the map");
    }
    fault.hint("indent with spaces, write `key: value`, and put text with special characters in quotes")
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl NodeVisitor {
    fn scalar<E>(text: impl Into<String>, kind: Kind) -> Result<Node, E> {
        Ok(Node::Scalar(Scalar { text: text.into(), kind, unexpanded: None }))
    }
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Self::scalar(value.to_string(), Kind::Bool)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Self::scalar(value.to_string(), Kind::Number)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Self::scalar(value.to_string(), Kind::Number)
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Self::scalar(value.to_string(), Kind::Number)
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Self::scalar(value.to_string(), Kind::Number)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Self::scalar(value.to_string(), Kind::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Self::scalar(value, Kind::Text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some((key, node)) = entries.next_entry::<String, Node>()? {
            // Every finding below it repeats the key.
            if key.len() > MAX_KEY {
                return Err(A::Error::custom(format!("a key is longer than {MAX_KEY} bytes")));
            }
            map.push((key, node));
        }
        Ok(Node::Map(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(A::Error::custom("tags are not supported"))
    }
}

/// Far more than any key or name has.
const MAX_KEY: usize = 256;

/// Walks a tree, expands variables and reports what is wrong with keys as such.
struct Expansion<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    report: &'a Report,
}

impl Expansion<'_> {
    fn node(&self, node: &mut Node, key: &str) {
        match node {
            Node::Null | Node::Refused => {}
            Node::Scalar(scalar) => {
                if let Err(fault) = self.scalar(scalar) {
                    self.report.error(key, fault.code("bad-variable"));
                    *node = Node::Refused;
                }
            }
            Node::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.node(item, &format!("{key}[{index}]"));
                }
            }
            Node::Map(entries) => {
                self.refuse_merges(entries, key);
                self.refuse_duplicates(entries, key);
                for (name, value) in entries {
                    self.node(value, &join(key, name));
                }
            }
        }
    }

    fn scalar(&self, scalar: &mut Scalar) -> Result<(), Fault> {
        if scalar.text.contains("${") {
            let text = expand(&scalar.text, self.env)?;
            scalar.unexpanded = Some(mem::replace(&mut scalar.text, text));
        }
        Ok(())
    }

    fn refuse_merges(&self, entries: &mut Vec<(String, Node)>, key: &str) {
        let before = entries.len();
        entries.retain(|(name, _)| name != "<<");
        if entries.len() < before {
            let fault = Fault::new("merge keys (`<<`) are not supported")
                .code("unsupported-yaml")
                .hint("write the settings out");
            self.report.error(&join(key, "<<"), fault);
        }
    }

    /// The first of equal keys stays; all are reported.
    fn refuse_duplicates(&self, entries: &mut Vec<(String, Node)>, key: &str) {
        let mut seen = HashSet::new();
        entries.retain(|(name, _)| {
            let first = seen.insert(name.clone());
            if !first {
                let fault = Fault::new("this key stands twice in the same map")
                    .code("listed-twice")
                    .hint("keep one of the two");
                self.report.error(&join(key, name), fault);
            }
            first
        });
    }
}

/// The path of a map's entry.
pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

/// Expands `${NAME}` and `${NAME:-default}`, once: what a variable holds is never looked at again. As in a shell,
/// the default stands in for a variable that is unset or empty. `$${` is a literal `${`.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Fault> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, tail) = (&rest[..start], &rest[start + 2..]);
        if let Some(escaped) = before.strip_suffix('$') {
            expanded.push_str(escaped);
            expanded.push_str("${");
            rest = tail;
            continue;
        }
        let Some((reference, tail)) = tail.split_once('}') else {
            return Err(
                Fault::new("a `${` has no `}`").hint("write `${NAME}`, or `$${` for the two characters themselves")
            );
        };
        expanded.push_str(before);
        expanded.push_str(&variable(reference, env)?);
        rest = tail;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn variable(reference: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Fault> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) || !name.bytes().all(legal) {
        return Err(Fault::new(format!("`${{{reference}}}` names no environment variable"))
            .hint("write `${NAME}` or `${NAME:-default}`, or `$${` for the two characters themselves"));
    }
    match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Fault::new(format!("the environment variable {name} is not set, or is not UTF-8"))
            .hint(format!("set it, or give a default: `${{{name}:-…}}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("8080".into()),
            "EVIL" => Some("x\"]\n# ${PORT}: &a".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn read(text: &str) -> (Option<Node>, Vec<String>) {
        let report = Report::new("f".into());
        let node = Node::read(text, &env, &report);
        (node, report.into_findings().iter().map(ToString::to_string).collect())
    }

    fn only_finding(text: &str) -> String {
        let (_, mut findings) = read(text);
        assert_eq!(findings.len(), 1, "{text}: {findings:?}");
        findings.remove(0)
    }

    #[test]
    fn anchors_aliases_and_tags_are_refused_wherever_they_stand() {
        for text in [
            "a: &x 1",
            "a: &x 1\nb: *x",
            "&x a: 1",
            "? *x\n: 1\n",
            "- &x a\n- *x",
            "a: [b, &x c, *x]",
            "a: [&x b,*x]",
            "a: {\"b\":&x c, \"d\":*x}",
            "&x\na: 1",
            "--- &x\na: 1",
            "a: it's\nb: &x 'c'\nd: don't",
            "a: b 'c\nd: &x e\nf: g' h",
            "a: \"'\"\nb: &x c\nd: \"'\"",
            "a: |\n  text\nb: &x c",
            "a: b # 'c\nd: &x 1 # '",
            "a: b#'c\nd: &x 1\ne: f'",
            "a: !x b",
            "a: !!str b",
            "a: !<tag:x> b",
            "a: ! b",
            "!x\na: 1",
            "a: !!binary aGk=",
            "%TAG ! tag:x,2000:\n---\na: !b c",
        ] {
            let (node, findings) = read(text);
            assert_eq!(node, None, "{text}");
            assert_eq!(findings.len(), 1, "{text}: {findings:?}");
        }
        assert!(only_finding("a: 1\nb: &x 1").starts_with("error: f: line 2: anchors, aliases and tags"));
    }

    #[test]
    fn the_same_characters_within_text_are_text() {
        for text in [
            "a: R&D",
            "a: R & D * x ! y",
            "a: '&x *y !z'",
            "a: \"&x *y !z\"",
            "a: b # &x *y !z",
            "# &x\na: b",
            "a: |\n  &x\n  *x\n  !x\n",
            "a: >\n  b\n  &x",
            "a: b\n  &x *y",
            "a&b: c*d",
            "a: it's &x",
            "a: [b &x, c!]",
            "a: https://x/?b&c*d!",
        ] {
            let (node, findings) = read(text);
            assert!(node.is_some() && findings.is_empty(), "{text}: {findings:?}");
        }
    }

    #[test]
    fn a_billion_laughs_are_not_expanded() {
        let mut text = String::from("a0: &a0 [x]\n");
        for level in 1..40 {
            let item = format!("*a{}, ", level - 1).repeat(10);
            text.push_str(&format!("a{level}: &a{level} [{item}]\n"));
        }
        assert!(only_finding(&text).contains("anchors"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(only_finding(&"[".repeat(5000)).contains("hundreds deep"));
        let text = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert!(only_finding(&text).contains("recursion"));
    }

    #[test]
    fn equal_keys_and_merge_keys_are_reported_with_their_path() {
        let (_, findings) = read("a: {b: 1, c: 2, b: 3}\nd: [{e: 1, e: 2}]\n<<: {f: 1}\na: 2");
        assert_eq!(
            findings,
            [
                "error: f: <<: merge keys (`<<`) are not supported. Write the settings out",
                "error: f: a: this key stands twice in the same map. Keep one of the two",
                "error: f: a.b: this key stands twice in the same map. Keep one of the two",
                "error: f: d[0].e: this key stands twice in the same map. Keep one of the two",
            ]
        );
    }

    #[test]
    fn variables_are_expanded_once_and_never_read_as_yaml() {
        for (text, expected) in [
            ("${PORT}", "8080"),
            ("a:${PORT}/${PORT}", "a:8080/8080"),
            ("${EVIL}", "x\"]\n# ${PORT}: &a"),
            ("${NONE:-b:c}", "b:c"),
            ("${EMPTY:-b}", "b"),
            ("${EMPTY}", ""),
            ("${NONE:-}", ""),
            ("$${PORT}", "${PORT}"),
            ("$$${PORT}", "$${PORT}"),
            ("$PORT $ {PORT} $", "$PORT $ {PORT} $"),
        ] {
            assert_eq!(expand(text, &env).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn variables_that_cannot_be_expanded_are_named() {
        assert!(only_finding("a: ['${NONE}']").starts_with("error: f: a[0]: the environment variable NONE is not set"));
        for text in ["${}", "${1A}", "${A-B}", "${A B}", "${", "${PORT"] {
            assert!(expand(text, &env).is_err(), "{text}");
        }
    }

    #[test]
    fn a_variable_s_value_is_not_shown() {
        let (node, _) = read("a: ${PORT}");
        let shown = format!("{node:?}");
        assert!(shown.contains("the value of `${PORT}`") && !shown.contains("8080"), "{shown}");
    }

    #[test]
    fn what_is_no_configuration_is_said_plainly() {
        for text in ["", "\n \n", "# only\n  # comments", "---\n", "\u{feff}"] {
            assert!(only_finding(text).contains("the file is empty"), "{text:?}");
        }
        assert!(only_finding("a: 1\n---\nb: 2").contains("more than one YAML document"));
        assert!(only_finding("a:\n\tb: 1").contains("line 2"));
        assert!(only_finding("a: [1").contains("not YAML"));
        assert!(only_finding("a: \u{1}").contains("not YAML"));
        assert!(only_finding("? [a]\n: b").contains("not YAML"));
    }
}
