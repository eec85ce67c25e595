//! Maps tensor names of the original authors' files to transformers' names, which the models use.
//!
//! A map is a table of rules. In a pattern, `{}` matches a number, and `*` at the end matches the rest. In the
//! result, `{qkv}` stands for query, key and value, each a third of the rows.

/// What to do with the tensors that match a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// The pattern of the original name.
    pub(super) from: &'static str,
    /// The name in transformers; `None` if the models do not need the tensor.
    pub(super) to: Option<&'static str>,
}

/// A rule that renames a tensor.
pub(super) const fn rename(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to: Some(to) }
}

/// A rule for a tensor that the models do not need.
pub(super) const fn ignore(from: &'static str) -> Rule {
    Rule { from, to: None }
}

/// A tensor under its new name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renamed {
    /// The new name.
    pub(super) name: String,
    /// 0, 1 or 2 for the first, second or last third of the rows; `None` for all.
    pub(super) third: Option<usize>,
}

/// Applies the first rule that matches a name; `None` if no rule matches.
pub(super) fn apply(rules: &[Rule], name: &str) -> Option<Vec<Renamed>> {
    rules.iter().find_map(|rule| {
        let wildcards = match_pattern(rule.from, name)?;
        Some(rule.to.map_or_else(Vec::new, |to| expand(to, &wildcards)))
    })
}

/// The parts of a name that match the wildcards of a pattern.
#[derive(Debug, Default)]
struct Wildcards<'a> {
    numbers: Vec<&'a str>,
    rest: &'a str,
}

/// Matches a name with a pattern, segment by segment.
fn match_pattern<'a>(pattern: &str, name: &'a str) -> Option<Wildcards<'a>> {
    let mut wildcards = Wildcards::default();
    let mut remaining = Some(name);
    for segment in pattern.split('.') {
        let name = remaining?;
        if segment == "*" {
            wildcards.rest = name;
            return Some(wildcards);
        }
        let (first, rest) = match name.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (name, None),
        };
        match segment {
            "{}" if first.bytes().all(|b| b.is_ascii_digit()) => wildcards.numbers.push(first),
            _ if segment == first => {}
            _ => return None,
        }
        remaining = rest;
    }
    remaining.is_none().then_some(wildcards)
}

/// The new names of a tensor: one, or three if `to` has `{qkv}`.
fn expand(to: &str, wildcards: &Wildcards) -> Vec<Renamed> {
    let mut numbers = wildcards.numbers.iter();
    let segments = to.split('.').map(|segment| match segment {
        "{}" => numbers.next().copied().unwrap_or_default(),
        "*" => wildcards.rest,
        other => other,
    });
    let name = segments.collect::<Vec<_>>().join(".");
    if !name.contains("{qkv}") {
        return vec![Renamed { name, third: None }];
    }
    let parts = ["query", "key", "value"].into_iter().enumerate();
    parts
        .map(|(third, part)| Renamed {
            name: name.replace("{qkv}", part),
            third: Some(third),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: [Rule; 4] = [
        ignore("blocks.{}.index"),
        rename("blocks.{}.qkv.*", "layers.{}.attention.{qkv}.*"),
        rename("blocks.{}.part.{}.*", "layers.{}.{}.*"),
        rename("head.in_proj_weight", "out.{qkv}.weight"),
    ];

    fn names(name: &str) -> Option<Vec<String>> {
        Some(
            apply(&RULES, name)?
                .into_iter()
                .map(|renamed| format!("{}/{:?}", renamed.name, renamed.third))
                .collect(),
        )
    }

    #[test]
    fn rules_rename_split_and_ignore_tensors() {
        let found =
            |names: &[&str]| Some(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(names("blocks.3.index"), found(&[]));
        assert_eq!(
            names("blocks.12.qkv.bias"),
            found(&[
                "layers.12.attention.query.bias/Some(0)",
                "layers.12.attention.key.bias/Some(1)",
                "layers.12.attention.value.bias/Some(2)"
            ])
        );
        assert_eq!(
            names("blocks.1.part.2.a.b"),
            found(&["layers.1.2.a.b/None"])
        );
        assert_eq!(
            names("head.in_proj_weight").map(|names| names.len()),
            Some(3)
        );
    }

    #[test]
    fn a_name_that_no_rule_matches_is_unknown() {
        for name in [
            "blocks.x.index",
            "blocks.3",
            "blocks.3.index.more",
            "head",
            "",
        ] {
            assert_eq!(names(name), None, "{name}");
        }
    }
}
