//! The report, opened in a real browser where there is one.

use occlude_e2e::Lab;
use std::process::Command;

/// A headless browser; `None`, after saying so, where there is none. With `CI=true` that is a failure.
fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
    assert!(found.is_some() || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has a browser");
    if found.is_none() {
        eprintln!("skipped: no chromium here to open the report");
    }
    found
}

fn headless(browser: &str, lab: &Lab, arguments: &[&str]) -> Vec<u8> {
    let page = format!("file://{}", lab.path("run/report.html").display());
    let profile = format!("--user-data-dir={}", lab.path("browser").display());
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=4000"])
        .arg(profile)
        .args(arguments)
        .arg(page)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn the_report_opens_in_a_browser() {
    let Some(browser) = browser() else { return };
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").succeeds();
    let page = String::from_utf8(headless(browser, &lab, &["--dump-dom"])).unwrap();
    for part in ["<svg", "<img", "k-NN", "[method.mask]"] {
        assert!(page.contains(part), "`{part}` in the page ({} bytes)", page.len());
    }
    assert!(!page.contains("src=\"http"), "one file, nothing fetched");
    headless(browser, &lab, &[&format!("--screenshot={}", lab.path("page.png").display()), "--window-size=1200,3000"]);
    let picture = image::open(lab.path("page.png")).unwrap().to_rgb8();
    let colours: std::collections::HashSet<[u8; 3]> = picture.pixels().map(|pixel| pixel.0).collect();
    assert!(colours.len() > 50, "more than an empty page: {} colours", colours.len());
}

#[test]
fn a_report_is_made_again_on_demand() {
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").succeeds();
    std::fs::remove_file(lab.path("run/report.html")).unwrap();
    lab.occlude("report run").succeeds();
    assert!(lab.text("run/report.html").starts_with("<!"), "{}", lab.tree());
}

#[test]
fn a_report_of_a_killed_run_knows_its_steps() {
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").paused_at("step:7").kill();
    lab.occlude("report run").succeeds();
    let page = lab.text("run/report.html");
    assert!(page.contains("6 steps") && page.contains("k-NN while training"), "{page}");
    lab.write("run/summary.json", "{");
    let error = lab.occlude("report run").refuses();
    assert!(error.contains("summary.json"), "{error}");
}

#[test]
fn scores_carry_the_pooling_of_the_settings() {
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run --set eval.poolings=[\"global\",\"average\"]").succeeds();
    let page = lab.text("run/report.html");
    let (first, second) = (page.find("global pooling").unwrap(), page.find("average pooling").unwrap());
    assert!(first < second, "{first} {second}");
}
