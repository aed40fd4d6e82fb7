//! The files in deploy/ that another program reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::process::Command;

use macrl::root;

/// `systemd-analyze verify` of the unit; the program that it starts is exchanged for one that is on every machine.
#[test]
fn systemd_accepts_the_unit() {
    let unit = std::fs::read_to_string(root().join("deploy/macrl-serve.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/macrl-serve --bundle"));
    let dir = tempfile::tempdir().unwrap();
    let verify = |text: &str| {
        let file = dir.path().join("macrl-serve.service");
        std::fs::write(&file, text.replace("/usr/local/bin/macrl-serve", "/bin/true")).unwrap();
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output()
    };
    let Ok(output) = verify(&unit) else {
        eprintln!("skipped: there is no systemd-analyze here");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    let wrong = verify(&unit.replace("Restart=on-failure", "Restrat=on-failure")).unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("Restrat"), "a mistake is noticed");
}
