//! The program starts. (With a test here, cargo builds the program before it runs any test of the workspace, which the
//! end-to-end tests in `tests/` rely on.)

use std::process::Command;

#[test]
fn the_program_tells_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_occlude")).arg("--version").output().unwrap();
    assert!(output.status.success());
    let expected = concat!("occlude ", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), expected);
}
