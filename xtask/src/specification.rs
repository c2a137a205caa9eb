//! SPECIFICATION.md names tests that are there. Sections 12 and 13 have tests of their own, beside the suite and the errors.

use std::fs;
use std::path::Path;

const SPECIFICATION: &str = include_str!("../../SPECIFICATION.md");
const END: &str = "\n## 12 ";

/// The number of each row, and its last cell.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let (sections, _) = SPECIFICATION.split_once(END).unwrap();
    sections.lines().filter(|line| line.starts_with("| ")).filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        cells[0].starts_with(|first: char| first.is_ascii_digit()).then(|| (cells[0], *cells.last().unwrap()))
    })
}

/// Whether this is a name as tests have: a sentence.
fn is_name(word: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    word.bytes().all(is_allowed) && word.matches('_').count() >= 2
}

/// File and test of each reference in a cell; without a name where all of a file is meant.
fn references(cell: &str) -> Vec<(String, &str)> {
    let mut found = Vec::new();
    let mut file = String::new();
    for word in cell.split_whitespace() {
        if let Some(topic) = word.strip_suffix(':') {
            file = format!("youki-backend/tests/integration/{}.rs", topic.replace("integration", "main"));
            continue;
        }
        let word = word.trim_matches(|c: char| "(),;`".contains(c));
        let (path, name) = match word.split_once("::") {
            Some((path, name)) => (Some(path), name),
            None if word.ends_with(".rs") => (Some(word), ""),
            None => (None, word),
        };
        if let Some(path) = path {
            file = path.replacen("backend/", "youki-backend/src/", usize::from(path.starts_with("backend/")));
        }
        if path.is_some() || is_name(name) {
            found.push((file.clone(), name));
        }
    }
    found
}

#[test]
fn each_test_that_is_named_is_in_the_file_that_is_named() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |file: &str| fs::read_to_string(top.join(file)).ok();
    let mut count = 0;
    let mut missing = Vec::new();
    for (row, cell) in rows() {
        for (file, name) in references(cell) {
            count += 1;
            let source = read(&file).or_else(|| read(&file.replace(".rs", "/mod.rs")));
            // What follows the last test of the suite has its name in quotes.
            let begins = [format!("fn {name}("), format!("\"{name}\"")];
            if !source.is_some_and(|source| name.is_empty() || begins.iter().any(|begin| source.contains(begin))) {
                missing.push(format!("{row}: {file} {name}"));
            }
        }
    }
    assert!(count > 400, "only {count} are read");
    assert_eq!(missing, Vec::<String>::new());
}
