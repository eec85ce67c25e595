//! Documents that name tests and modules name only those that exist.

use std::collections::BTreeSet;
use std::fs;

use crate::support::{files_below, repository};

/// The texts in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The cells of the rows of a Markdown table, without the rows of its head.
fn rows(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = table.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
}

/// The code and the tests of the repository.
struct Code {
    /// All Rust and Python code in `src` and `tests`.
    text: String,
    /// The names of all functions that are tests.
    tests: BTreeSet<String>,
}

impl Code {
    fn read() -> Self {
        let files = [
            files_below(&repository("src")),
            files_below(&repository("tests")),
        ];
        let (mut text, mut tests) = (String::new(), BTreeSet::new());
        for file in files.concat() {
            let extension = file.extension().unwrap_or_default();
            if extension == "rs" || extension == "py" {
                let code = fs::read_to_string(&file).unwrap();
                tests.extend(tests_in(&code).map(str::to_owned));
                text.push_str(&code);
            }
        }
        Self { text, tests }
    }

    /// Whether a test has this name, with or without its module.
    fn has_test(&self, name: &str) -> bool {
        let function = name.rsplit("::").next().unwrap();
        let is_in_module = || match name.rsplit_once("::") {
            None => true,
            Some((module, _)) => {
                let module = module.replace("::", "/");
                let files = ["tests/integration", "tests/reference", "src"].map(|folder| {
                    [
                        format!("{folder}/{module}.rs"),
                        format!("{folder}/{module}/mod.rs"),
                    ]
                });
                files.as_flattened().iter().any(|file| {
                    let code = fs::read_to_string(repository(file)).unwrap_or_default();
                    tests_in(&code).any(|test| test == function)
                })
            }
        };
        self.tests.contains(function) && is_in_module()
    }

    /// Whether a function, method or type has this name.
    fn has_item(&self, name: &str) -> bool {
        let item = name.rsplit("::").next().unwrap();
        let forms = [
            format!("fn {item}("),
            format!("struct {item}"),
            format!("def {item}("),
        ];
        forms.iter().any(|form| self.text.contains(form))
    }
}

/// The functions that follow `#[test]` or `#[tokio::test]`.
fn tests_in(code: &str) -> impl Iterator<Item = &str> {
    let attribute = |line: &str| {
        let line = line.trim_start();
        line.starts_with("#[test]") || line.starts_with("#[tokio::test")
    };
    let mut lines = code.lines();
    std::iter::from_fn(move || {
        lines.find(|line| attribute(line))?;
        lines.find_map(|line| {
            let (_, rest) = line.split_once("fn ")?;
            rest.split_once('(').map(|(name, _)| name)
        })
    })
}

/// Whether this is a file or folder of the repository, or a module of `src`. A file in `tests/integration` or
/// `tests/simulation` may be named without its folder.
fn is_path(name: &str) -> bool {
    let module = name.replace("::", "/");
    let paths = [
        name.to_owned(),
        format!("src/{module}"),
        format!("src/{module}.rs"),
        format!("tests/integration/{name}"),
        format!("tests/simulation/{name}"),
    ];
    paths.iter().any(|path| repository(path).exists())
}

#[test]
fn security_md_names_existing_modules_and_tests() {
    let text = fs::read_to_string(repository("SECURITY.md")).unwrap();
    let (_, section) = text.split_once("### What holds").unwrap();
    let (section, _) = section.split_once("### Not promised").unwrap();
    let code = Code::read();
    let mut tests = 0;
    for cells in rows(section) {
        for name in quoted(cells[1]) {
            let exists = is_path(name) || code.has_item(name);
            assert!(exists, "SECURITY.md names {name}, which does not exist");
        }
        for name in quoted(cells[2]) {
            let exists = code.has_test(name) || is_path(name);
            assert!(
                exists,
                "SECURITY.md names the test {name}, which does not exist"
            );
            tests += 1;
        }
    }
    assert!(tests > 15, "SECURITY.md names only {tests} tests");
}

/// The last column of the tables under "Promises" names tests, files and scenarios of `faults.py`.
#[test]
fn the_pages_on_tests_and_reliability_name_existing_tests_and_files() {
    let code = Code::read();
    for (page, heading, min_names) in [
        ("docs/tests.md", "## Promises", 100),
        ("docs/reliability.md", "## Promises", 30),
    ] {
        let text = fs::read_to_string(repository(page)).unwrap();
        let (_, section) = text.split_once(heading).unwrap();
        let mut names = 0;
        for cells in rows(section.split("\n## ").next().unwrap()) {
            for name in quoted(cells.last().unwrap()) {
                // `faults.py` with the name of a scenario
                let mut words = name.split(' ');
                let file = words.next().unwrap();
                let exists = is_path(file) || code.has_test(file) || code.has_item(file);
                assert!(exists, "{page} names {name}, which does not exist");
                for scenario in words {
                    let function = format!("def {scenario}(");
                    assert!(
                        code.text.contains(&function),
                        "{page}: {file} has no {scenario}"
                    );
                }
                names += 1;
            }
        }
        assert!(names >= min_names, "{page} names only {names} tests");
    }
}

/// Every path in backticks exists.
#[test]
fn the_page_on_tests_names_existing_paths() {
    let text = fs::read_to_string(repository("docs/tests.md")).unwrap();
    let mut paths = 0;
    for name in quoted(&text) {
        let is_path_like = name.contains('/') && !name.contains([' ', '<', '*', '=', '{']);
        if is_path_like && !name.starts_with(['/', '-', 'h']) {
            assert!(
                is_path(name),
                "docs/tests.md names {name}, which does not exist"
            );
            paths += 1;
        }
    }
    assert!(paths > 10, "docs/tests.md names only {paths} paths");
}
