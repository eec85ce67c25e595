//! The classes of an export, and their numbers.

use std::collections::HashMap;

/// The classes in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Classes {
    names: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Classes {
    /// The classes that are known at the start. Of equal ones, the first is kept.
    pub(super) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let mut classes = Self::default();
        for name in names {
            classes.number(&name);
        }
        classes
    }

    /// The number of a class, from 0. A new class gets the next number.
    pub(super) fn number(&mut self, name: &str) -> usize {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len();
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// The names in the order of the numbers.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_numbered_in_their_order() {
        let mut classes = Classes::new(["cup", "pot", "cup"].map(str::to_owned));
        assert_eq!(
            ["pot", "lid", "cup", "lid"].map(|c| classes.number(c)),
            [1, 2, 0, 2]
        );
        assert_eq!(classes.names(), ["cup", "pot", "lid"]);
    }
}
