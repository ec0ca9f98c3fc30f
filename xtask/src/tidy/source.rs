//! Rules about the text of a file.

use super::Finding;

/// Longest file that a person still reads in one sitting.
const LONGEST: usize = 600;

/// Functions of candle that lose a gradient or compute a wrong one without saying so (0.11).
const GRADIENT_TRAPS: &[&str] =
    &["candle_nn", "_no_bwd(", ".slice_set(", ".scatter(", ".scatter_add(", ".upsample_", ".as_detached_tensor("];

/// Starts of paths that exist on one machine only. Split, so that this file does not contain what it forbids.
const MACHINE_PATHS: &[&str] = &[concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/")];

/// Words of unfinished work, split for the same reason.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];

/// Findings in one file; `place` is its path from the root of the repository, with `/` between folders.
pub(super) fn check(place: &str, text: &str) -> Vec<Finding> {
    let mut findings = everywhere(place, text);
    if place.ends_with(".rs") {
        findings.extend(in_rust(place, text));
    }
    findings
}

fn everywhere(place: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in numbered(text) {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(*path)) {
            findings.push(found(place, number, format!("`{path}` is a path of one machine: make it relative")));
        }
        if let Some(word) = UNFINISHED.iter().find(|word| line.contains(*word)) {
            findings.push(found(place, number, format!("`{word}`: finish it or open an issue")));
        }
    }
    findings
}

fn in_rust(place: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if !first.starts_with("//!") {
        findings.push(found(place, 1, "begin the file with `//!`: what it holds, in one line".into()));
    }
    let lines = text.lines().count();
    if lines > LONGEST {
        findings.push(found(place, 0, format!("{lines} lines, more than {LONGEST}: split it by idea")));
    }
    findings.extend(unsafe_rules(place, text));
    if is_library(place) {
        findings.extend(library_rules(place, text));
    }
    findings
}

/// Library code proper: tests may print and may use anything.
fn is_library(place: &str) -> bool {
    place.starts_with("crates/") && place.contains("/src/") && !place.starts_with("crates/golden/") && !is_test(place)
}

fn is_test(place: &str) -> bool {
    place.ends_with("/tests.rs") || place.contains("/tests/")
}

fn library_rules(place: &str, text: &str) -> Vec<Finding> {
    let kernels = place.starts_with("crates/kernels/");
    let mut findings = Vec::new();
    for (number, line) in numbered(&text[..start_of_tests(text)]) {
        let code = code_of(line);
        if ["println!", "eprintln!", "print!(", "eprint!(", "dbg!"].iter().any(|print| code.contains(print)) {
            findings.push(found(place, number, "a library does not print: use `tracing` or a sink".into()));
        }
        if let Some(trap) = GRADIENT_TRAPS.iter().find(|trap| !kernels && code.contains(*trap)) {
            let message = format!("`{trap}` loses gradients in candle: use the operator in `kernels`");
            findings.push(found(place, number, message));
        }
    }
    findings
}

/// Where the tests of a file begin: at a test module with a body. One that lies in its own file ends nothing here.
fn start_of_tests(text: &str) -> usize {
    let has_body = |place: &usize| text[*place..].lines().nth(1).is_some_and(|line| line.contains('{'));
    let modules = text.match_indices("#[cfg(test)]\nmod ").map(|(place, _)| place);
    modules.into_iter().find(has_body).unwrap_or(text.len())
}

fn unsafe_rules(place: &str, text: &str) -> Vec<Finding> {
    let kernels = place.starts_with("crates/kernels/");
    let lines: Vec<&str> = text.lines().collect();
    let mut findings = Vec::new();
    for (index, _) in lines.iter().enumerate().filter(|(_, line)| has_word(code_of(line), "unsafe")) {
        if !kernels {
            findings.push(found(place, index + 1, "`unsafe` lives in `kernels` only".into()));
        } else if !explained(&lines[..=index]) {
            findings.push(found(place, index + 1, "say above it in `// SAFETY:` why this `unsafe` is sound".into()));
        }
    }
    findings
}

/// Whether the last of `lines` carries a safety note, or the statement or comment it belongs to does.
fn explained(lines: &[&str]) -> bool {
    const REACH: usize = 12;
    let near = lines.iter().rev().take(REACH).enumerate();
    near.take_while(|(distance, line)| *distance == 0 || !line.trim().is_empty())
        .any(|(_, line)| line.contains("SAFETY:") || line.contains("# Safety"))
}

/// A line without its comment and without what stands between quotes.
fn code_of(line: &str) -> &str {
    let code = line.split("//").next().unwrap_or_default();
    code.split('"').next().unwrap_or_default()
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn found(place: &str, line: usize, message: String) -> Finding {
    Finding { place: place.to_owned(), line, message }
}

#[cfg(test)]
mod tests {
    use super::{GRADIENT_TRAPS, MACHINE_PATHS, UNFINISHED, check};

    fn messages(place: &str, text: &str) -> Vec<String> {
        check(place, text).iter().map(ToString::to_string).collect()
    }

    /// The one finding of `text`, which must contain `expected`.
    fn only(place: &str, text: &str, expected: &str) {
        let found = messages(place, text);
        assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
    }

    const LIBRARY: &str = "crates/vit/src/block.rs";

    #[test]
    fn a_clean_file_has_no_finding() {
        assert_eq!(messages(LIBRARY, "//! Blocks.\n\npub fn f() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn a_module_begins_with_its_page() {
        only(LIBRARY, "pub fn f() {}\n", "vit/src/block.rs:1: begin the file with");
    }

    #[test]
    fn a_library_does_not_print() {
        only(LIBRARY, "//! B.\nfn f() { println!(\"x\") }\n", ":2: a library does not print");
        only(LIBRARY, "//! B.\nfn f() { dbg!(1); }\n", "does not print");
        assert!(messages(LIBRARY, "//! B.\n#[cfg(test)]\nmod tests { fn f() { println!() } }\n").is_empty());
        only(LIBRARY, "//! B.\n#[cfg(test)]\nmod tests;\nfn f() { println!(\"x\") }\n", ":4: a library does not print");
        assert!(messages("bins/occlude/src/main.rs", "//! B.\nfn f() { println!() }\n").is_empty());
        assert!(messages(LIBRARY, "//! B.\n// println! is not used here\n").is_empty());
    }

    #[test]
    fn unsafe_is_explained_and_in_kernels() {
        let bare = "//! K.\nfn f() { unsafe { g() } }\n";
        only("crates/data/src/read.rs", bare, "lives in `kernels` only");
        only("crates/kernels/src/k.rs", bare, "SAFETY");
        assert!(messages("crates/kernels/src/k.rs", "//! K.\n// SAFETY: g is total.\nunsafe { g() }\n").is_empty());
        only("crates/kernels/src/k.rs", "//! K.\n// SAFETY: other.\n\nfn f() { unsafe { g() } }\n", "SAFETY");
        assert!(messages("crates/data/src/read.rs", "//! K.\n// unsafe in a comment\n").is_empty());
    }

    #[test]
    fn gradient_traps_stay_out_of_the_rooms() {
        for trap in GRADIENT_TRAPS {
            only(LIBRARY, &format!("//! B.\nfn f() {{ x{trap} }}\n"), "loses gradients");
            assert!(messages("crates/kernels/src/k.rs", &format!("//! B.\nfn f() {{ x{trap} }}\n")).is_empty());
        }
    }

    #[test]
    fn a_file_ends_before_it_tires() {
        only(LIBRARY, &format!("//! B.\n{}", "// x\n".repeat(600)), "601 lines");
        assert!(messages(LIBRARY, &format!("//! B.\n{}", "// x\n".repeat(599))).is_empty());
    }

    #[test]
    fn machine_paths_and_unfinished_work_are_found_in_every_kind_of_file() {
        for path in MACHINE_PATHS {
            only("configs/a.toml", &format!("path = \"{path}images\"\n"), "path of one machine");
        }
        for word in UNFINISHED {
            only("README.md", &format!("{word}: write\n"), "finish it");
        }
    }
}
