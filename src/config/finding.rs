//! What is wrong with a configuration, or worth knowing of it: where it stands, why, and what to do. Must not know
//! what the settings mean.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;

/// One thing found in a configuration or in a file that it names. Displays as one line:
/// `error: sealproxy.yaml: upstreams.becm.trust: <reason>. <hint>`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The file it was found in.
    pub file: PathBuf,
    /// The setting, such as `upstreams.becm.trust` or `routes[1].path`; empty: the file as a whole.
    pub key: String,
    /// One stable word for machines, where the kind of finding has one.
    pub code: Option<&'static str>,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether it is a warning only because what it is about is not in use.
    pub is_lowered: bool,
}

impl Finding {
    /// Something that keeps the proxy from starting.
    pub fn error(file: impl Into<PathBuf>, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(Level::Error, file.into(), key.into(), reason.into())
    }

    /// Something that is legal and probably not meant.
    pub fn warning(file: impl Into<PathBuf>, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(Level::Warning, file.into(), key.into(), reason.into())
    }

    /// Something worth knowing.
    pub fn note(file: impl Into<PathBuf>, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(Level::Note, file.into(), key.into(), reason.into())
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds its word for machines.
    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The same, and a warning at most.
    pub fn lowered(self) -> Self {
        if !self.is_error() {
            return self;
        }
        Self { level: Level::Warning, is_lowered: true, ..self }
    }

    /// Whether it keeps the proxy from starting.
    pub fn is_error(&self) -> bool {
        self.level == Level::Error
    }

    fn new(level: Level, file: PathBuf, key: String, reason: String) -> Self {
        Self { level, file, key, code: None, reason, hint: None, is_lowered: false }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.level, one_line(&self.file.display().to_string()))?;
        if !self.key.is_empty() {
            write!(f, ": {}", one_line(&self.key))?;
        }
        write!(f, ": {}", one_line(&self.reason))?;
        let Some(hint) = &self.hint else { return Ok(()) };
        let stop = if self.reason.ends_with(['.', '?', '!']) { "" } else { "." };
        write!(f, "{stop} {}", one_line(&capitalised(hint)))
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The proxy does not start.
    Error,
    /// Legal, and probably not meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// A finding without its place: what a reader of one value can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: String,
    pub(super) code: &'static str,
    pub(super) hint: Option<String>,
    /// Whether the value may hold a secret, and is not to stand before the reason.
    pub(super) hidden: bool,
}

impl Fault {
    /// Of the commonest kind: a value that cannot be what is meant.
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), code: "bad-value", hint: None, hidden: false }
    }

    /// Of what stands somewhere twice.
    pub(super) fn listed_twice(reason: impl Into<String>) -> Self {
        Self::new(reason).code("listed-twice").hint("take one away")
    }

    /// Of another kind.
    pub(super) fn code(self, code: &'static str) -> Self {
        Self { code, ..self }
    }

    pub(super) fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Gathers the findings of one file, so that one reading tells all of them.
pub(super) struct Report {
    file: PathBuf,
    findings: RefCell<Vec<Finding>>,
}

impl Report {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, findings: RefCell::default() }
    }

    pub(super) fn error(&self, key: &str, fault: Fault) {
        self.add(Level::Error, key, fault);
    }

    pub(super) fn warning(&self, key: &str, fault: Fault) {
        self.add(Level::Warning, key, fault);
    }

    pub(super) fn note(&self, key: &str, fault: Fault) {
        self.add(Level::Note, key, fault);
    }

    pub(super) fn has_errors(&self) -> bool {
        self.findings.borrow().iter().any(Finding::is_error)
    }

    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.findings.into_inner()
    }

    fn add(&self, level: Level, key: &str, fault: Fault) {
        let Fault { reason, code, hint, .. } = fault;
        let finding = Finding {
            level,
            file: self.file.clone(),
            key: key.to_owned(),
            code: Some(code),
            reason,
            hint,
            is_lowered: false,
        };
        self.findings.borrow_mut().push(finding);
    }
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn capitalised(hint: &str) -> String {
    let mut characters = hint.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let finding = Finding::error("a.yaml", "routes[1].path", "first\nsecond").hint("do\r\nthis");
        assert_eq!(finding.to_string(), "error: a.yaml: routes[1].path: first second. Do  this");
    }

    #[test]
    fn a_finding_about_the_whole_file_has_no_key() {
        assert_eq!(Finding::note("a.yaml", "", "it is so").to_string(), "note: a.yaml: it is so");
    }

    #[test]
    fn a_question_is_not_followed_by_a_full_stop() {
        let finding = Finding::warning("a.yaml", "b", "did you mean `c`?").hint("write it");
        assert_eq!(finding.to_string(), "warning: a.yaml: b: did you mean `c`? Write it");
    }
}
