//! Tables of papers: what is listed, what is refused, a small run of one.

use occlude_e2e::Lab;

#[test]
fn tables_are_listed_with_their_rows() {
    let lab = Lab::new();
    let all = lab.occlude("repro").succeeds().stdout;
    assert!(all.contains("moca/T2e    share of the image loss (MOCA, Table 2e)\n  T2e-1     lambda 1\n"), "{all}");
    assert!(all.contains("not carried: T7: COCO"), "{all}");
    assert!(all.contains("randsac/T8b  ") && all.contains("not carried: T11: UperNet"), "{all}");
    let each = ["moca", "randsac"].map(|method| lab.occlude(&format!("repro {method}")).succeeds().stdout);
    assert_eq!(each.concat(), all);
}

#[test]
fn the_published_size_is_a_list_of_commands() {
    let lab = Lab::new();
    let text = lab.occlude("repro moca/T2e --scale paper --seeds 2").succeeds().stdout;
    let commands: Vec<&str> =
        text.lines().filter(|line| line.starts_with("cargo xtask train configs/moca/T2e-")).collect();
    assert_eq!(commands.len(), 10, "{text}");
    assert!(text.contains("8 A100") && text.contains("# T2e-5: lambda 0; published: k-NN 13.1"), "{text}");
    assert!(!lab.path("runs").exists(), "nothing is run");
}

#[test]
fn names_that_do_not_exist_are_refused() {
    let lab = Lab::new();
    let said = |arguments: &str| lab.occlude(arguments).output().said();
    assert!(said("repro moca/T2g").contains("unknown row `T2g`: did you mean `T2"));
    assert!(said("repro moco/T2e").contains("unknown method `moco`: did you mean `moca`?"));
    assert!(said("repro moca/T2e --scale tine").contains("unknown scale `tine`: did you mean `tiny`?"));
    assert!(said("repro moca/T7").contains("T7 is not carried"));
    assert!(said("repro moca/T2e --set train.bacth=3").contains("did you mean `train.batch`?"));
}

#[test]
fn a_table_is_run_at_a_small_size_and_goes_on_where_it_was() {
    let lab = Lab::new();
    let small = [
        "--data synthetic --set data.crop.flip=0 --set data.source.train_limit=64 --set data.source.test_limit=32",
        "--set train.batch=8 --set train.length.steps=2 --set method.encoder.dim=16 --set method.encoder.heads=2",
        "--set method.decoder.dim=16 --set method.decoder.heads=2 --set method.codebook.words=32",
        "--set method.optimizer.warmup.steps=1",
        "--set eval.bank=64 --set eval.test=32 --set eval.linear.moca.epochs=1 --set eval.linear.moca.batch=16",
    ];
    let command = format!("repro moca/T2d --json table.json {}", small.join(" "));
    let first = lab.occlude(&command).succeeds();
    let text = &first.stdout;
    for part in ["what stands for an image (MOCA, Table 2d)", "T2d-1", "60.2", "T2d-2", "71.8", "train.batch"] {
        assert!(text.contains(part), "{part}\n{}", first.report());
    }
    let table: serde_json::Value = serde_json::from_str(&lab.text("table.json")).unwrap();
    let line = |index: usize| &table["lines"][index]["here"];
    assert!(line(0)["knn"][0].is_number() && line(1)["linear"][0].is_number(), "{table}");
    let again = lab.occlude(&command).succeeds();
    assert!(again.said().matches("finished earlier").count() == 2, "{}", again.report());
    assert_eq!(&again.stdout, text);
}

#[test]
fn a_table_of_another_method_is_run_with_its_own_probe() {
    let lab = Lab::new();
    let small = [
        "--data synthetic --set data.crop.flip=0 --set data.source.train_limit=64 --set data.source.test_limit=32",
        "--set train.batch=8 --set train.length.steps=2 --set method.encoder.dim=16 --set method.encoder.heads=2",
        "--set method.encoder.depth=2 --set method.decoder.dim=16 --set method.decoder.heads=2 --set method.decoder.depth=1",
        "--set method.optimizer.warmup.steps=1 --set eval.bank=64 --set eval.test=32",
        "--set eval.linear.mae.epochs=2 --set eval.linear.mae.warmup_epochs=1 --set eval.linear.mae.batch=16",
    ];
    let run = lab.occlude(&format!("repro randsac/T2 --json table.json {}", small.join(" "))).succeeds();
    for part in ["order of the patches (RandSAC, Table 2)", "raster", "55.5", "random", "75.5"] {
        assert!(run.stdout.contains(part), "{part}\n{}", run.report());
    }
    let table: serde_json::Value = serde_json::from_str(&lab.text("table.json")).unwrap();
    assert!((0..2).all(|line| table["lines"][line]["here"]["linear"][0].is_number()), "{table}");
}
