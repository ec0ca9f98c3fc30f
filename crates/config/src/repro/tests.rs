//! The tables: names, settings at every size, refusals.

use super::{Reproduction, differences};
use crate::Sources;
use std::collections::{BTreeMap, BTreeSet};

fn tables() -> impl Iterator<Item = Reproduction> {
    Reproduction::methods().map(|method| Reproduction::of(method).unwrap())
}

#[test]
fn names_are_unique_and_say_their_study() {
    for table in tables() {
        let mut seen = BTreeSet::new();
        for study in &table.studies {
            assert!(!study.rows.is_empty(), "{}", study.id);
            assert!(study.rows.len() == 1 || seen.insert(&study.id), "{}", study.id);
        }
        for (study, row) in table.rows() {
            assert!(row.id.starts_with(&study.id) && seen.insert(&row.id), "{}", row.id);
            assert!(!row.figures.is_empty(), "{} has no figure", row.id);
            assert!(row.at.keys().all(|scale| table.scale.contains_key(scale)), "{}: {:?}", row.id, row.at);
        }
    }
}

#[test]
fn every_row_is_allowed_at_every_size() {
    for table in tables() {
        for (_, row) in table.rows() {
            let published = table.config(row).unwrap_or_else(|error| panic!("{}: {error}", row.id));
            published.check(None).unwrap_or_else(|error| panic!("{}: {error}", row.id));
            for scale in table.scale.keys() {
                let small = table.config_at(row, scale, &Sources::default()).unwrap();
                // The checks take an epoch for as many images as CIFAR-10 has.
                small.check(None).unwrap_or_else(|error| panic!("{} at {scale}: {error}", row.id));
            }
        }
    }
}

#[test]
fn every_setting_of_a_scale_reaches_every_row() {
    for table in tables() {
        for (_, row) in table.rows() {
            for (name, scale) in &table.scale {
                let small = table.config_at(row, name, &Sources::default()).unwrap();
                // Laid over the row once more, the scale changes nothing but what the row itself has there.
                let again = crate::merge::merge::<crate::RunConfig>(vec![
                    crate::layers::text(crate::Source::Row("small".into()), &small.to_toml().unwrap()).unwrap(),
                    table.layer(row, &scale.set).unwrap(),
                ]);
                let changed = differences(&small, &again.unwrap());
                assert!(changed.is_empty() || row.at.contains_key(name), "{}: {changed:?}", row.id);
            }
        }
    }
}

#[test]
fn rows_that_differ_do_so_at_every_scale() {
    for table in tables() {
        for scale in table.scale.keys() {
            let mut published = BTreeMap::new();
            for (_, row) in table.rows() {
                let small = table.config_at(row, scale, &Sources::default()).unwrap().identity();
                let paper = table.config(row).unwrap().identity();
                let first = published.entry(small).or_insert_with(|| (row.id.clone(), paper.clone()));
                assert_eq!(first.1, paper, "{} and {} are the same run at {scale}", first.0, row.id);
            }
        }
    }
}

#[test]
fn lengths_in_epochs_shrink_together() {
    let table = Reproduction::of("moca").unwrap();
    let at = |name: &str| {
        let row = table.find(name).unwrap().rows[0];
        let identity = table.config_at(row, "tiny", &Sources::default()).unwrap().identity();
        (identity["train.length"].clone(), identity["method.optimizer.warmup"].clone())
    };
    let epochs = |count: &str| format!(r#"{{"epochs":{count}}}"#);
    assert_eq!(at("T2e-3"), (epochs("5.0"), epochs("1.5")));
    assert_eq!(at("T9-2"), (epochs("20.0"), epochs("1.5")));
}

#[test]
fn what_a_person_says_lies_over_a_scale() {
    let table = Reproduction::of("moca").unwrap();
    let row = table.find("T2e-1").unwrap().rows[0];
    let with = |set: &str| table.config_at(row, "tiny", &Sources { set: vec![set.into()], ..Sources::default() });
    assert_eq!(with("train.length.steps=7").unwrap().identity()["train.length"], r#"{"steps":7}"#);
    assert_eq!(with("data.source.path=synthetic").unwrap().data.source.path, "synthetic");
    assert_eq!(
        with("preset=capi-vit-s").unwrap_err().to_string(),
        "--set preset=capi-vit-s: preset: moca/T2e-1 has its own"
    );
    assert!(with("train.bacth=7").unwrap_err().to_string().contains("did you mean `train.batch`?"));
}

#[test]
fn an_unknown_name_is_met_with_those_like_it() {
    let table = Reproduction::of("moca").unwrap();
    let refused = |name: &str| table.find(name).unwrap_err().to_string();
    assert!(refused("T2e-7").starts_with("unknown row `T2e-7`: did you mean `T2e-"), "{}", refused("T2e-7"));
    assert_eq!(refused("T2"), "unknown row `T2`: did you mean one of T2a, T2b, T2c, T2d, T2e, T2f?");
    assert!(refused("zzzzzz").contains(": there are F1, T1a"), "{}", refused("zzzzzz"));
    assert!(refused("T7").starts_with("T7 is not carried: COCO"), "{}", refused("T7"));
    let method = Reproduction::of("moco").unwrap_err().to_string();
    assert_eq!(method, "unknown method `moco`: did you mean `moca`?");
    let row = table.find("v1").unwrap().rows[0];
    let scale = table.config_at(row, "tidy", &Sources::default()).unwrap_err().to_string();
    assert_eq!(scale, "unknown scale `tidy`: did you mean `tiny`?");
}

#[test]
fn a_study_is_all_of_its_rows() {
    let table = Reproduction::of("moca").unwrap();
    let ids = |name: &str| table.find(name).unwrap().rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids("T2e"), ["T2e-1", "T2e-2", "T2e-3", "T2e-4", "T2e-5"]);
    assert_eq!(ids("T2e-4"), ["T2e-4"]);
    assert_eq!(ids("v1"), ["v1"]);
}

#[test]
fn differences_name_both_values() {
    let table = Reproduction::of("moca").unwrap();
    let config = |name: &str| table.config(table.find(name).unwrap().rows[0]).unwrap();
    let found = differences(&config("T2f-2"), &config("T2f-3"));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].key.as_str(), found[0].paper.as_deref()), ("method.intermediate", None));
    assert_eq!(found[0].here.as_deref(), Some("9"));
}
