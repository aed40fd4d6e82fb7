//! Signals in every phase of the server, and its messages at start.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{BINARY, Process, bundle};

/// Starts a server and does not wait for its first line.
fn spawn(bundle: &Path, more: &[&str]) -> Process {
    let child = Command::new(BINARY)
        .args(["--device", "cpu", "--bundle"])
        .arg(bundle)
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Process { child, url: String::new() }
}

/// Waits until the process has a handler for SIGHUP, SIGINT and SIGTERM.
fn until_it_listens(child: &Child) {
    let since = Instant::now();
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_string();
        let caught = u64::from_str_radix(&caught, 16).unwrap_or(0);
        if [1, 2, 15].iter().all(|signal| (caught >> (signal - 1)) & 1 == 1) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "no handlers");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_that_waits_for_its_database_ends_on_a_signal() {
    let dir = bundle();
    for signal in ["-TERM", "-INT"] {
        // Nothing listens there: the server tries for half a minute.
        let mut server =
            spawn(dir.path(), &["--listen", "127.0.0.1:0", "--index", "postgres://nobody@127.0.0.1:1/nothing"]);
        until_it_listens(&server.child);
        server.signal("-HUP");
        std::thread::sleep(Duration::from_millis(300));
        assert!(server.child.try_wait().unwrap().is_none(), "SIGHUP ended it");
        let since = Instant::now();
        server.signal(signal);
        assert_eq!(server.wait(Duration::from_secs(20)), Some(0), "{signal}");
        assert!(since.elapsed() < Duration::from_secs(15));
    }
}

#[test]
fn load_balancers_have_time_to_notice_a_shutdown() {
    let dir = bundle();
    let mut server = Process::start(dir.path(), &["--drain-delay", "300"]);
    assert!(server.ask(b"GET /ready HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
    server.signal("-TERM");
    let since = Instant::now();
    while !server.ask(b"GET /ready HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 503") {
        assert!(since.elapsed() < Duration::from_secs(20), "still ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Requests are still answered, and kept connections are asked to close.
    let answer = server.ask(b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert!(server.child.try_wait().unwrap().is_none());
    // A second signal ends the wait.
    server.signal("-TERM");
    assert_eq!(server.wait(Duration::from_secs(60)), Some(0));
}

#[test]
fn a_public_address_without_a_key_is_warned_of() {
    let dir = bundle();
    for (more, warned) in
        [(&["--listen", "0.0.0.0:0"][..], true), (&["--listen", "0.0.0.0:0", "--api-key", "k"], false)]
    {
        let mut server = spawn(dir.path(), more);
        let mut lines = BufReader::new(server.child.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().starts_with("listening on http://0.0.0.0:"));
        assert!(lines.next().unwrap().unwrap().starts_with("ready"));
        server.signal("-TERM");
        let mut said = String::new();
        server.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said.contains("no key is asked for"), warned, "{said}");
    }
}
