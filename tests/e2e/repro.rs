//! Tables of papers: what is listed, what is refused, a small run of one.

use occlude_e2e::Lab;

#[test]
fn tables_are_listed_with_their_rows() {
    let lab = Lab::new();
    let all = lab.occlude("repro").succeeds().stdout;
    assert!(all.contains("moca/T2e    share of the image loss (MOCA, Table 2e)\n  T2e-1     lambda 1\n"), "{all}");
    assert!(all.contains("not carried: T7: COCO"), "{all}");
    assert_eq!(lab.occlude("repro moca").succeeds().stdout, all);
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
