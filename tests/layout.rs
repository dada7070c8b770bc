//! Holds the table of who may import whom.

use std::path::{Path, PathBuf};

/// A module, and the modules of ours that it may name.
const MAY_IMPORT: [(&str, &[&str]); 13] = [
    ("causes", &[]),
    ("files", &[]),
    ("key", &["files"]),
    ("admin", &[]),
    ("log", &[]),
    ("identity", &["files", "key"]),
    ("seal", &["key", "identity"]),
    ("upstream", &["files", "identity", "log"]),
    ("proxy", &["causes", "seal", "upstream", "log"]),
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

#[test]
fn no_module_imports_what_it_must_not_know() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (module, allowed) in MAY_IMPORT {
        let mut files = Vec::new();
        sources(&src.join(module), &mut files);
        files.extend(Some(src.join(format!("{module}.rs"))).filter(|file| file.exists()));
        assert!(!files.is_empty(), "{module} has no file: is the table up to date?");
        for file in files {
            for (index, line) in
                production(&file).lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
            {
                for after in line.split("crate::").skip(1) {
                    let names = after.trim_start_matches('{').split([':', ';', ',', '}', '(', '<', ' ', ')']);
                    let name = names.into_iter().next().expect("a name");
                    let ours = MAY_IMPORT.iter().any(|(ours, _)| *ours == name);
                    assert!(
                        !ours || name == module || allowed.contains(&name),
                        "{}:{}: {module} must not know {name}",
                        file.display(),
                        index + 1
                    );
                }
            }
        }
    }
}

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
