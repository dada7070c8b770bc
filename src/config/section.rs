//! A tree's values with their key paths: each reads itself as what is wanted, or reports why it cannot. Must not know
//! what the settings mean.
//!
//! After a reported error a default stands in, so that reading goes on and tells the next one.

use super::file::{Kind, Node, Scalar, join};
use super::finding::{Fault, Report};

/// One value and where it stands.
#[derive(Clone)]
pub(super) struct Value<'a> {
    pub(super) key: String,
    node: &'a Node,
    pub(super) report: &'a Report,
}

impl<'a> Value<'a> {
    pub(super) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self { key: String::new(), node, report }
    }

    /// Reports an error of this value.
    pub(super) fn refuse(&self, fault: Fault) {
        self.report.error(&self.key, fault);
    }

    /// Reads text: a path, a name, an address.
    pub(super) fn text<T>(&self, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let scalar = self.scalar("text")?;
        if scalar.kind != Kind::Text {
            // Not shown: a long number is no longer written as it was. Quotes alone help where it would be legal as
            // text.
            let hint = parse(&scalar.text).map_or_else(|fault| fault.hint, |_| None);
            self.refuse_text(hint);
            return None;
        }
        self.parsed(scalar, parse)
    }

    /// Reads what may stand as itself or as text: a number, a size, a duration, a boolean.
    pub(super) fn quantity<T>(&self, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        self.parsed(self.scalar("a single value")?, parse)
    }

    /// Reads text that is one of the names known here.
    pub(super) fn choice<T: Clone>(&self, what: &str, known: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let is_one = |text: &str| {
            let known = names.contains(&text);
            if known { Ok(()) } else { Err(Fault::new("").hint(format!("known here: {}", names.join(", ")))) }
        };
        if let Node::Scalar(Scalar { kind: Kind::Bool | Kind::Number, .. }) = self.node {
            self.text(is_one);
            return None;
        }
        let name = self.text(|text| Ok(text.to_owned()))?;
        let choice = known.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        if choice.is_none() {
            self.refuse(unknown(what, &self.scalar("text")?.shown(), &name, &names).code("unknown-name"));
        }
        choice
    }

    /// The place of one of a map's entries, or of the map itself where it has no such.
    pub(super) fn field(&self, name: &str) -> Self {
        let entries = if self.is_map() { self.named() } else { Vec::new() };
        entries.into_iter().find(|(key, _)| *key == name).map_or_else(|| self.clone(), |(_, value)| value)
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Vec<Self> {
        if let Node::List(_) = self.node {
            return self.items_or_one();
        }
        self.refuse_kind("a list");
        Vec::new()
    }

    /// The items of a list, or the value itself as the only one.
    pub(super) fn items_or_one(&self) -> Vec<Self> {
        match self.node {
            Node::List(items) => {
                let at = |(index, node)| Self { key: format!("{}[{index}]", self.key), node, report: self.report };
                items.iter().enumerate().map(at).collect()
            }
            Node::Null | Node::Refused => {
                self.refuse_kind("a list");
                Vec::new()
            }
            _ => vec![self.clone()],
        }
    }

    /// The entries of a map whose keys are names of the user's choice.
    pub(super) fn named(&self) -> Vec<(&'a str, Self)> {
        let Node::Map(entries) = self.node else {
            self.refuse_kind("a map");
            return Vec::new();
        };
        let entry = |(name, node): &'a (String, Node)| {
            (name.as_str(), Self { key: join(&self.key, name), node, report: self.report })
        };
        entries.iter().map(entry).collect()
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node, Node::Map(_))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node, Node::List(_))
    }

    /// A map with known keys; reports every other.
    pub(super) fn section(&self, keys: &[&str]) -> Option<Section<'a>> {
        if !self.is_map() {
            self.refuse_kind("a map");
            return None;
        }
        let entries = self.named();
        for (name, value) in entries.iter().filter(|(name, _)| !keys.contains(name)) {
            value.refuse(unknown("key", &format!("`{name}`"), name, keys).code("unknown-setting"));
        }
        Some(Section { key: self.key.clone(), entries, report: self.report })
    }

    fn scalar(&self, wanted: &str) -> Option<&'a Scalar> {
        if let Node::Scalar(scalar) = self.node {
            return Some(scalar);
        }
        self.refuse_kind(wanted);
        None
    }

    fn parsed<T>(&self, scalar: &Scalar, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let read = parse(&scalar.text);
        let result = if scalar.text.is_empty() {
            let hint = read.err().and_then(|fault| fault.hint);
            Err(Fault::new("is empty").hint(hint.unwrap_or_else(|| "give it a value, or take the key away".to_owned())))
        } else {
            read
        };
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                let subject = if fault.hidden { "the value".to_owned() } else { scalar.shown() };
                self.refuse(Fault { reason: format!("{subject} {}", fault.reason), ..fault });
                None
            }
        }
    }

    fn refuse_text(&self, hint: Option<String>) {
        let fault = Fault::new(format!("is {} where text is expected", self.node.kind())).code("wrong-type");
        self.refuse(fault.hint(hint.unwrap_or_else(|| "put it in quotes".to_owned())));
    }

    fn refuse_kind(&self, wanted: &str) {
        let fault = match self.node {
            Node::Refused => return,
            Node::Null => Fault::new("has no value").hint("give it one, or take the key away"),
            node => Fault::new(format!("is {} where {wanted} is expected", node.kind())).hint(match wanted {
                "a list" => "write it in brackets: [one, two]",
                "a map" => "write `key: value` lines below it, indented",
                _ => "write one value",
            }),
        };
        let fault = match self.key.is_empty() {
            false => fault,
            // Nothing that a pair of brackets would mend.
            true => Fault::new(format!("the file {}", fault.reason))
                .hint("is it a configuration at all? `sealproxy init becm` prints one to begin with"),
        };
        self.refuse(fault.code("wrong-type"));
    }
}

/// A map with known keys.
pub(super) struct Section<'a> {
    pub(super) key: String,
    entries: Vec<(&'a str, Value<'a>)>,
    pub(super) report: &'a Report,
}

impl<'a> Section<'a> {
    pub(super) fn value(&self, key: &str) -> Option<Value<'a>> {
        self.entries.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    }

    /// A value that must be there.
    pub(super) fn required(&self, key: &str, hint: &str) -> Option<Value<'a>> {
        let value = self.value(key);
        if value.is_none() {
            self.report.error(&join(&self.key, key), Fault::new("is missing").code("missing-setting").hint(hint));
        }
        value
    }

    /// A section within this one; empty where it is absent.
    pub(super) fn section(&self, key: &str, keys: &[&str]) -> Self {
        let empty = || Self { key: join(&self.key, key), entries: Vec::new(), report: self.report };
        self.value(key).and_then(|value| value.section(keys)).unwrap_or_else(empty)
    }

    /// A number, size, duration or boolean, or its default.
    pub(super) fn quantity<T>(&self, key: &str, default: T, parse: impl FnOnce(&str) -> Result<T, Fault>) -> T {
        self.value(key).and_then(|value| value.quantity(parse)).unwrap_or(default)
    }
}

/// What items are read as, each of which may stand there once.
pub(super) fn distinct<'a, T: PartialEq>(
    items: &[Value<'a>],
    what: &str,
    read: impl Fn(&Value<'a>) -> Option<T>,
) -> Vec<T> {
    let mut all = Vec::new();
    for item in items {
        let Some(one) = read(item) else { continue };
        if all.contains(&one) {
            item.refuse(Fault::listed_twice(format!("the same {what} is listed twice")));
        }
        all.push(one);
    }
    all
}

/// Something that is none of the names that are known here.
pub(super) fn unknown(what: &str, shown: &str, name: &str, known: &[&str]) -> Fault {
    match closest(name, known) {
        Some(near) => Fault::new(format!("unknown {what} {shown}; did you mean `{near}`?")),
        None if known.is_empty() => Fault::new(format!("unknown {what} {shown}")).hint("none is configured"),
        None => Fault::new(format!("unknown {what} {shown}")).hint(format!("known here: {}", known.join(", "))),
    }
}

fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase();
    let near = known.iter().map(|known| (distance(&name, &known.to_lowercase()), *known)).min()?;
    (near.0 <= (near.1.len() / 3).max(1)).then_some(near.1)
}

/// How many letters are to be put in, left out, changed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(MAX_NAME).collect(), b.chars().take(MAX_NAME).collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swap = if swapped { table[i - 2][j - 2] + 1 } else { changed };
                changed.min(swap).min(table[i - 1][j] + 1).min(table[i][j - 1] + 1)
            };
        }
    }
    table[a.len()][b.len()]
}

/// No known name is longer.
const MAX_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_name_is_suggested_if_it_is_close() {
        let known = ["upstreams", "routes", "limits", "timeouts"];
        for (name, near) in [
            ("upstrems", Some("upstreams")),
            ("upstream", Some("upstreams")),
            ("Routes", Some("routes")),
            ("ruotes", Some("routes")),
            ("timeout", Some("timeouts")),
            ("logging", None),
            ("", None),
        ] {
            assert_eq!(closest(name, &known), near, "{name}");
        }
    }

    #[test]
    fn distances_count_swapped_neighbours_once() {
        for (a, b, expected) in
            [("", "abc", 3), ("abc", "abc", 0), ("acb", "abc", 1), ("trsut", "trust", 1), ("ab", "xaby", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
