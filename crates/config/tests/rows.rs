//! Files that are written from tables of published experiments are equal to them.
//!
//! `cargo xtask repro --write` runs this test with `OCCLUDE_TEST_WRITE` set: it then writes the files first.
// Helpers outside `#[test]` functions are test code too.
#![allow(clippy::unwrap_used, clippy::panic)]

use occlude_config::{Reproduction, Sources, resolve};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Checks that `path` holds `text`; writes it first where that is asked for.
fn holds(path: &Path, text: &str) {
    if std::env::var_os("OCCLUDE_TEST_WRITE").is_some() {
        std::fs::write(path, text).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == text, "{}: differs from its table; run `cargo xtask repro --write`", path.display());
}

/// The files of `configs/<method>` that are written from its table.
fn expected(table: &Reproduction) -> BTreeMap<PathBuf, String> {
    let folder = root().join("configs").join(table.method());
    table.rows().map(|(study, row)| (folder.join(format!("{}.toml", row.id)), table.file(study, row))).collect()
}

#[test]
fn configs_are_those_of_the_tables() {
    for table in Reproduction::methods().map(|method| Reproduction::of(method).unwrap()) {
        let expected = expected(&table);
        expected.iter().for_each(|(path, text)| holds(path, text));
        for (_, row) in table.rows() {
            let file = root().join("configs").join(table.method()).join(format!("{}.toml", row.id));
            let read = resolve(&Sources { file: Some(file), ..Sources::default() }).unwrap();
            assert_eq!(read, table.config(row).unwrap(), "{}", row.id);
        }
        let folder = std::fs::read_dir(root().join("configs").join(table.method())).unwrap();
        for path in folder.map(|entry| entry.unwrap().path()) {
            let written = std::fs::read_to_string(&path).unwrap().contains("Written from a table");
            assert!(!written || expected.contains_key(&path), "{}: no row of this name; remove it", path.display());
        }
    }
}

#[test]
fn pages_list_the_rows() {
    for table in Reproduction::methods().map(|method| Reproduction::of(method).unwrap()) {
        let path = root().join("docs/methods").join(format!("{}.md", table.method()));
        let page = std::fs::read_to_string(&path).unwrap();
        let text = table.listed(&page).unwrap_or_else(|| panic!("{}: no marks for the list of rows", path.display()));
        holds(&path, &text);
    }
}
