//! What is written from a table: the config file of a row, and the list of rows in the page of a method.

use super::{Reproduction, Row, Study};
use crate::keys::join;
use std::fmt::Write;

/// What stands before and after the list in a page.
const BEGIN: &str = "<!-- rows: `cargo xtask repro --write` -->\n";
const END: &str = "<!-- end of rows -->\n";

impl Reproduction {
    /// The config file of `row`, as it lies in `configs`.
    #[must_use]
    pub fn file(&self, study: &Study, row: &Row) -> String {
        let Self { method, paper, .. } = self;
        let (Row { id, about, preset, .. }, source) = (row, &study.source);
        let mut text = format!(
            "# {}: {about}. Written from a table: `cargo xtask repro --write`.\n\
             #\n\
             # Source    {paper}, {source}\n\
             # Command   cargo xtask train configs/{method}/{id}.toml --set data.source.path=FOLDER\n\
             # Published {}\n\
             # Smaller   cargo xtask repro {method}/{id}\n\
             preset = \"{preset}\"\n",
            study.about,
            figures(row)
        );
        for (key, value) in flat(&row.set) {
            let _ = writeln!(text, "{key} = {value}"); // Writing to a string cannot fail.
        }
        text
    }

    /// `page` with the list of rows written anew between its two marks; `None` if it has no marks.
    #[must_use]
    pub fn listed(&self, page: &str) -> Option<String> {
        let (before, rest) = page.split_once(BEGIN)?;
        let (_, after) = rest.split_once(END)?;
        Some(format!("{before}{BEGIN}{}{END}{after}", self.list()))
    }

    fn list(&self) -> String {
        let mut text = "\n| row | what | settings | published |\n| --- | --- | --- | --- |\n".to_owned();
        for study in &self.studies {
            let Study { id, source, about, preset, .. } = study;
            let _ = writeln!(text, "| **{id}** | **{source}: {about}** | `{preset}` | |");
            for row in &study.rows {
                let changes = flat(&row.set).into_iter().map(|(key, value)| format!("`{key} = {value}`"));
                let changes = changes.collect::<Vec<_>>().join(", ");
                let _ = writeln!(text, "| {} | {} | {changes} | {} |", row.id, row.about, figures(row));
            }
        }
        text.push_str("\nNot carried:\n\n");
        for absent in &self.absent {
            let _ = writeln!(text, "- {}: {}.", absent.rows, absent.why);
        }
        text.push('\n');
        text
    }
}

/// `k-NN 71.8, min/epoch 8.15`.
fn figures(row: &Row) -> String {
    let each = row.figures.iter().map(|(measure, figure)| format!("{measure} {}", figure.written(*measure)));
    each.collect::<Vec<_>>().join(", ")
}

/// Settings by full name, as TOML.
fn flat(set: &toml::Table) -> Vec<(String, String)> {
    fn walk(table: &toml::Table, path: &str, found: &mut Vec<(String, String)>) {
        for (name, value) in table {
            let key = join(path, name);
            match value {
                toml::Value::Table(below) => walk(below, &key, found),
                value => found.push((key, value.to_string())),
            }
        }
    }
    let mut found = Vec::new();
    walk(set, "", &mut found);
    found
}
