//! The table of SPECIFICATION.md that says which sentence of the contract each check asks.

use std::collections::{BTreeMap, BTreeSet};

use crate::conformance::all_checks;

const SPECIFICATION: &str = include_str!("../../../../SPECIFICATION.md");
const HEADING: &str = "## 12 The contract of the trait, sentence by sentence";

/// The last cell of each row, by its number.
fn rows() -> BTreeMap<&'static str, &'static str> {
    let (_, section) = SPECIFICATION.split_once(HEADING).expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        cells[0].starts_with("12.").then_some(cells)
    });
    let mut rows = BTreeMap::new();
    for cells in cells {
        let [number, _, checks] = cells[..] else { panic!("{} has not three cells: {cells:?}", cells[0]) };
        assert!(rows.insert(number, checks).is_none(), "{number} comes twice");
    }
    rows
}

/// What stands in backticks and is named like a check.
fn checks_in(cell: &str) -> impl Iterator<Item = &str> {
    let quoted = cell.split('`').skip(1).step_by(2).filter(|text| text.contains('.'));
    quoted.filter(|text| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b)))
}

#[test]
fn each_check_is_named_and_each_that_is_named_is_there() {
    let rows = rows();
    let named: BTreeSet<&str> = rows.values().copied().flat_map(checks_in).collect();
    let there: BTreeSet<&str> = all_checks().iter().map(|check| check.name).collect();
    assert_eq!(named.difference(&there).collect::<Vec<_>>(), Vec::<&&str>::new(), "no such checks");
    assert_eq!(there.difference(&named).collect::<Vec<_>>(), Vec::<&&str>::new(), "not in the table");
}

#[test]
fn each_sentence_has_a_check_or_a_reason() {
    let rows = rows();
    assert!(rows.len() > 100, "only {} sentences are read", rows.len());
    for (number, cell) in rows {
        let said = cell.split('`').step_by(2);
        assert!(
            !said.clone().any(|text| text.contains("no check asks")),
            "{number} has an excuse for a reason: {cell:?}"
        );
        let has_reason = said.clone().any(|text| text.split_whitespace().count() > 3);
        assert!(checks_in(cell).next().is_some() || has_reason, "{number} has neither a check nor a reason: {cell:?}");
    }
}

/// Where the fields of a spec are.
const SPECS: [&str; 4] = [
    include_str!("../../spec/mod.rs"),
    include_str!("../../spec/storage.rs"),
    include_str!("../../spec/ports.rs"),
    include_str!("../../spec/health.rs"),
];

/// A field that nobody thought of when the table was written is in no row of it.
#[test]
fn each_field_of_a_spec_stands_in_a_row() {
    let (_, section) = SPECIFICATION.split_once(HEADING).expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let words: BTreeSet<&str> = section.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let field = |line: &'static str| line.trim_start().strip_prefix("pub ")?.split_once(": ").map(|(name, _)| name);
    let fields = SPECS.iter().flat_map(|source| source.lines().filter_map(field)).filter(|name| !name.contains(' '));
    let kinds =
        SPECS[1].lines().skip_while(|line| !line.contains("pub enum StorageSpec")).take_while(|line| *line != "}");
    let of_storage = kinds.filter_map(|line| line.strip_prefix("        ")?.split_once(": ").map(|(name, _)| name));
    let fields: BTreeSet<&str> = fields.chain(of_storage.filter(|name| !name.starts_with("//"))).collect();
    assert!(fields.len() > 60 && fields.contains("take_over"), "only {fields:?} are read");
    assert_eq!(fields.difference(&words).collect::<Vec<_>>(), Vec::<&&str>::new(), "in no row");
}

#[test]
fn no_two_checks_have_one_name() {
    let checks = all_checks();
    let names: BTreeSet<&str> = checks.iter().map(|check| check.name).collect();
    assert_eq!(names.len(), checks.len());
    for check in checks {
        assert!(check.name.split('.').count() == 2 && !check.promise.is_empty(), "{}", check.name);
    }
}

/// Where promises are broken, one at a time: in memory, and between Berth and the suite.
const FAULTS: [&str; 5] = [
    include_str!("mod.rs"),
    include_str!("../../../../youki-backend/tests/integration/conformance/faults.rs"),
    include_str!("../../../../youki-backend/tests/integration/conformance/faults/storage.rs"),
    include_str!("../../../../youki-backend/tests/integration/conformance/faults/usage.rs"),
    include_str!("../../../../youki-backend/tests/integration/conformance/faults/further.rs"),
];

#[test]
fn each_check_is_shown_to_fail() {
    let is_shown = |name: &str| FAULTS.iter().any(|source| source.contains(&format!("\"{name}\"")));
    let never: Vec<&str> = all_checks().iter().map(|check| check.name).filter(|name| !is_shown(name)).collect();
    assert_eq!(never, Vec::<&str>::new(), "no fault is known that these find");
}
