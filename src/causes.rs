//! An error with what is behind it, on one line. Must not know whose error it is.

use std::error::Error;
use std::iter::successors;

/// An error and its causes, from the outermost to the first. What a wrapper only repeats is said once.
pub fn in_words(error: &dyn Error) -> String {
    let causes = successors(error.source(), |cause| (*cause).source());
    let mut levels = vec![error.to_string()];
    levels.extend(causes.map(ToString::to_string));
    levels.dedup();
    levels.join(": ")
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Level(&'static str, Option<Box<Self>>);

    impl fmt::Display for Level {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Level {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|level| level as _)
        }
    }

    #[test]
    fn each_level_is_told_once_and_in_order() {
        let first = Level("no space left", None);
        let wrapper = Level("no space left", Some(Box::new(first)));
        let last = Level("the file cannot be written", Some(Box::new(wrapper)));
        assert_eq!(in_words(&last), "the file cannot be written: no space left");
    }
}
