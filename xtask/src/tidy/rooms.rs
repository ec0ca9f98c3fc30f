//! The rooms of docs/architecture.md and which may use which.

use super::Finding;
use cargo_metadata::{DependencyKind, Package as Described};

/// Libraries from the ground up: a crate uses only those before it.
const ORDER: &[&str] = &[
    "random",
    "settings",
    "masking",
    "kernels",
    "vit",
    "heads",
    "tokenizers",
    "losses",
    "optim",
    "distributed",
    "data",
    "methods",
    "checkpoint",
    "trainer",
    "eval",
    "report",
    "config",
];

/// Rooms that do without tensors.
const NO_CANDLE: &[&str] = &["random", "settings", "masking", "data", "report", "config"];

/// Serves tests only; every crate may have it as a dev-dependency.
const GOLDEN: &str = "golden";

/// Packages outside `crates`: they start and measure things, and may use every room.
const STARTERS: &[&str] = &["occlude", "occlude-e2e", "occlude-benches", "xtask"];

/// What the rules need to know about a package.
#[derive(Debug)]
pub(super) struct Package {
    name: String,
    /// Name, and whether it is for tests only.
    dependencies: Vec<(String, bool)>,
}

impl From<&Described> for Package {
    fn from(package: &Described) -> Self {
        let dependencies = package.dependencies.iter();
        let dependencies = dependencies.map(|used| (used.name.clone(), used.kind == DependencyKind::Development));
        Self { name: package.name.to_string(), dependencies: dependencies.collect() }
    }
}

/// Findings over all packages of the workspace.
pub(super) fn check(packages: &[Package]) -> Vec<Finding> {
    packages.iter().filter(|package| !STARTERS.contains(&package.name.as_str())).flat_map(check_room).collect()
}

fn check_room(package: &Package) -> Vec<Finding> {
    let found = |message: String| Finding { place: package.name.clone(), line: 0, message };
    let room = package.name.strip_prefix("occlude-").unwrap_or(&package.name);
    if room == GOLDEN {
        return Vec::new();
    }
    let Some(level) = level(room) else {
        return vec![found(format!("not a known room: add `{room}` to docs/architecture.md and to xtask's room list"))];
    };
    package.dependencies.iter().filter_map(|(used, dev)| forbidden(room, level, used, *dev)).map(found).collect()
}

fn level(room: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == room)
}

/// Why `room` may not use `used`, if it may not.
fn forbidden(room: &str, own: usize, used: &str, dev: bool) -> Option<String> {
    if used.starts_with("candle") && NO_CANDLE.contains(&room) {
        return Some(format!("uses {used}, but `{room}` knows no tensors: move that code to a room that does"));
    }
    if STARTERS.contains(&used) {
        return Some(format!("uses {used}: a library never uses a program"));
    }
    let other = used.strip_prefix("occlude-")?;
    if other == GOLDEN {
        return (!dev).then(|| format!("uses {used} outside tests: make it a dev-dependency"));
    }
    match level(other) {
        Some(other) if other < own => None,
        Some(_) => Some(format!("uses {used}, which is not above it in docs/architecture.md: turn the arrow around")),
        None => Some(format!("uses {used}, which is not a known room")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Package, check};

    fn findings(name: &str, used: &[(&str, bool)]) -> Vec<String> {
        let dependencies = used.iter().map(|(name, dev)| ((*name).to_owned(), *dev)).collect();
        check(&[Package { name: name.to_owned(), dependencies }]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_arrow_that_points_down_is_found() {
        assert!(findings("occlude-vit", &[("occlude-kernels", false), ("serde", false)]).is_empty());
        let found = findings("occlude-kernels", &[("occlude-vit", false)]);
        assert!(found[0].contains("occlude-kernels") && found[0].contains("turn the arrow around"), "{found:?}");
        assert_eq!(findings("occlude-kernels", &[("occlude-vit", true)]).len(), 1, "tests obey too");
    }

    #[test]
    fn a_room_without_tensors_stays_so() {
        for room in ["masking", "settings", "random", "data", "report", "config"] {
            assert_eq!(findings(&format!("occlude-{room}"), &[("candle-core", true)]).len(), 1, "{room}");
        }
        assert!(findings("occlude-vit", &[("candle-core", false)]).is_empty());
    }

    #[test]
    fn golden_serves_tests_only() {
        assert!(findings("occlude-data", &[("occlude-golden", true)]).is_empty());
        assert!(findings("occlude-data", &[("occlude-golden", false)])[0].contains("dev-dependency"));
    }

    #[test]
    fn unknown_rooms_and_programs_are_found() {
        assert!(findings("occlude-attic", &[])[0].contains("attic"));
        assert!(findings("occlude-data", &[("occlude-attic", false)])[0].contains("not a known room"));
        assert!(findings("occlude-data", &[("occlude", false)])[0].contains("never uses a program"));
        assert!(findings("xtask", &[("anything", false)]).is_empty());
    }
}
