//! The tests and modules that `SECURITY.md` names are there.

use std::fs;

use crate::support::{repository, sources};

/// What stands in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn what_security_md_names_is_there() {
    let text = fs::read_to_string(repository("SECURITY.md")).unwrap();
    let (_, held) = text.split_once("### What holds").unwrap();
    let (held, _) = held.split_once("### Not promised").unwrap();
    let files = [sources(&repository("src")), sources(&repository("tests"))].concat();
    let code: String = files
        .iter()
        .filter(|file| file.extension().is_some_and(|kind| kind == "rs"))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let is_file = |name: &str| {
        let path = name.replace("::", "/");
        let places = [name, &format!("src/{path}"), &format!("src/{path}.rs")];
        places.iter().any(|place| repository(place).exists())
    };
    let is_item = |name: &str| {
        let item = name.rsplit("::").next().unwrap();
        let forms = [format!("fn {item}("), format!("struct {item}")];
        forms.iter().any(|form| code.contains(form))
    };
    let mut tests = 0;
    for row in held.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        for name in quoted(cells[1]) {
            let is_there = is_file(name) || is_item(name);
            assert!(is_there, "SECURITY.md names {name}, which is not there");
        }
        for name in quoted(cells[2]) {
            let function = name.rsplit("::").next().unwrap();
            let is_test = code.contains(&format!("fn {function}("));
            assert!(is_test || is_file(name), "there is no test {name}");
            tests += 1;
        }
    }
    assert!(tests > 15, "{tests}");
}
