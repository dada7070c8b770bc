//! Holds the table of who may import whom.

use std::path::{Path, PathBuf};

/// A module, and the modules of ours that it may name.
const MAY_IMPORT: [(&str, &[&str]); 14] = [
    ("causes", &[]),
    ("files", &[]),
    ("series", &[]),
    ("key", &["files"]),
    ("admin", &[]),
    ("log", &[]),
    ("identity", &["files", "key"]),
    ("seal", &["key", "identity"]),
    ("upstream", &["files", "identity", "log", "series"]),
    ("proxy", &["causes", "seal", "series", "upstream", "log"]),
    ("sandbox", &["key", "identity", "seal"]),
    ("config", &["files", "key", "admin", "identity", "proxy", "seal", "upstream"]),
    ("app", &["admin", "causes", "config", "files", "identity", "key", "log", "proxy", "seal", "upstream"]),
    ("cli", &["app", "causes", "config", "identity", "log", "sandbox", "upstream"]),
];

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("a folder") {
            sources(&entry.expect("an entry").path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

/// The production part of a file: without the unit tests at its end, and nothing of a file that is all tests.
fn production(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a source file");
    let tests = ["#[cfg(test)]\nmod tests", "#![cfg(test)]\n"].iter().filter_map(|tests| text.find(tests)).min();
    text[..tests.unwrap_or(text.len())].to_owned()
}

/// The modules of ours that a text names, each with its line, counted from 1: in a path, or in the braces of an import,
/// however it is broken into lines.
fn named(text: &str) -> Vec<(usize, String)> {
    let code: Vec<&str> =
        text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let line = 1 + code[..at].matches('\n').count();
        let after = &code[at + "crate::".len()..];
        let names = match after.strip_prefix('{') {
            Some(group) => heads(group),
            None => vec![after],
        };
        let first = |name: &str| {
            name.trim_start().split(|c: char| !(c.is_alphanumeric() || c == '_')).next().map(str::to_owned)
        };
        found.extend(names.into_iter().filter_map(first).map(|name| (line, name)));
    }
    found
}

/// Where each member of a group begins, up to the brace that closes it.
fn heads(group: &str) -> Vec<&str> {
    let (mut depth, mut heads) = (0, vec![group]);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(&group[at + 1..]),
            _ => {}
        }
    }
    heads
}

#[test]
fn a_module_is_found_however_it_is_imported() {
    let text = "use crate::log::Log;\n// crate::app\nuse crate::{admin, cli::{self, run}, seal};\nlet a = crate::proxy::b;\n\
                use crate::{\n    key,\n    identity::pem::{read, Reason},\n};\n";
    let found = named(text);
    let found: Vec<_> =
        found.iter().map(|(line, name)| (*line, name.as_str())).filter(|(_, name)| !name.is_empty()).collect();
    let expected = [(1, "log"), (3, "admin"), (3, "cli"), (3, "seal"), (4, "proxy"), (5, "key"), (5, "identity")];
    assert_eq!(found, expected);
}

#[test]
fn no_module_imports_what_it_must_not_know() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (module, allowed) in MAY_IMPORT {
        let mut files = Vec::new();
        sources(&src.join(module), &mut files);
        files.extend(Some(src.join(format!("{module}.rs"))).filter(|file| file.exists()));
        assert!(!files.is_empty(), "{module} has no file: is the table up to date?");
        for file in files {
            for (line, name) in named(&production(&file)) {
                let ours = MAY_IMPORT.iter().any(|(ours, _)| *ours == name);
                assert!(
                    !ours || name == module || allowed.contains(&name.as_str()),
                    "{}:{line}: {module} must not know {name}",
                    file.display(),
                );
            }
        }
    }
}

/// As wide as the code that rustfmt breaks: nobody scrolls to read a comment.
#[test]
fn no_line_is_wider_than_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        sources(&root.join(folder), &mut files);
    }
    let mut wide = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source file");
        let is_wide = |line: &str| line.trim_start().starts_with("//") && line.chars().count() > PAGE;
        let lines = text.lines().enumerate().filter(|(_, line)| is_wide(line));
        wide.extend(lines.map(|(index, _)| format!("{}:{}", file.display(), index + 1)));
    }
    assert!(wide.is_empty(), "{} comments are wider than {PAGE} columns: {}", wide.len(), wide.join(" "));
}

/// Columns, as in rustfmt.toml.
const PAGE: usize = 120;

#[test]
fn the_two_libraries_that_are_no_longer_developed_stay_in_their_one_file() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for (library, home) in [("rustls_pemfile", "identity/pem.rs"), ("serde_yaml", "config/file.rs")] {
        let users: Vec<_> = files.iter().filter(|file| production(file).contains(&format!("{library}::"))).collect();
        assert_eq!(users, [&src.join(home)], "{library}");
    }
}
