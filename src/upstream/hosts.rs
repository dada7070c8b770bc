//! The file of names that a machine's owner keeps by hand: one address a line, followed by its names (hosts(5)).
//! Read here because the system's resolver does not find an absolute name in it.

use std::net::IpAddr;
use std::path::Path;

/// Where Unix systems keep it.
pub(super) const FILE: &str = "/etc/hosts";

/// The addresses of `name` in a file, in its order, as it stands at this moment. None where there is no such file,
/// no such name, or no text.
pub(super) fn addresses(file: &Path, name: &str) -> Vec<IpAddr> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| address(line, name)).collect()
}

fn address(line: &str, name: &str) -> Option<IpAddr> {
    let mut words = line.split('#').next()?.split_ascii_whitespace();
    let address = words.next()?;
    words.any(|word| word.eq_ignore_ascii_case(name)).then(|| address.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_address_and_its_names() {
        let line = "10.0.0.1\tBank.example  bank # other";
        for (name, found) in [("bank.example", true), ("bank", true), ("other", false), ("10.0.0.1", false)] {
            assert_eq!(address(line, name).is_some(), found, "{name}");
        }
        for line in ["", "# 10.0.0.1 bank", "10.0.0.1", "no-address bank", "bank 10.0.0.1"] {
            assert_eq!(address(line, "bank"), None, "{line}");
        }
        assert_eq!(address("::1 bank", "bank"), Some("::1".parse().expect("an address")));
    }

    #[test]
    fn a_machine_without_the_file_has_no_such_names() {
        assert_eq!(addresses(Path::new("/nowhere/hosts"), "bank"), Vec::<IpAddr>::new());
    }
}
