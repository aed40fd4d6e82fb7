//! Connections that are kept: answers before the body, idle times, and the limit of open files.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{BINARY, Process, bundle, request};
use crate::support::*;

/// A client that keeps its connection.
struct Wire {
    stream: BufReader<TcpStream>,
}

/// Status, headers with small names, body.
type Answered = (u16, HashMap<String, String>, String);

impl Wire {
    fn open(server: &Process) -> Self {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    fn answer(&mut self) -> Answered {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {line:?}")).parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_string());
        }
        let length = headers.get("content-length").map_or(0, |v| v.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (status, headers, String::from_utf8(body).unwrap())
    }

    /// Whether the connection takes another request.
    fn is_open(&mut self) -> bool {
        self.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.answer().0 == 200
    }

    /// Whether the server has closed it.
    fn has_ended(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }
}

fn says_close(answered: &Answered) -> bool {
    answered.1.get("connection").is_some_and(|value| value == "close")
}

const KEY: &str = "Authorization: Bearer k\r\n";
const PNG: &str = "Content-Type: image/png\r\n";

/// Requests that are answered before their body is read: status, method and path, headers.
fn early() -> Vec<(u16, &'static str, String)> {
    vec![
        (401, "POST /embed", PNG.into()),
        (401, "POST /v1/embeddings", PNG.into()),
        (404, "POST /nothing", PNG.into()),
        (404, "PUT /items/a/b.png", format!("{KEY}{PNG}")),
        (405, "PUT /embed", format!("{KEY}{PNG}")),
        (405, "POST /health", PNG.into()),
        (405, "BREW /embed", format!("{KEY}{PNG}")),
        (413, "POST /embed", format!("{KEY}{PNG}")),
        (415, "POST /embed", format!("{KEY}Content-Type: text/plain\r\n")),
        (415, "POST /embed", KEY.into()),
        (415, "POST /embed", format!("{KEY}{PNG}Content-Encoding: compress\r\n")),
        (200, "GET /health", PNG.into()),
        (200, "GET /info", format!("{KEY}{PNG}")),
    ]
}

#[test]
fn an_answer_before_the_body_does_not_break_the_next_request() {
    let dir = bundle();
    let server = Process::start(dir.path(), &["--api-key", "k", "--max-body", "100000"]);
    let body = vec![7; 150_000];
    for (status, target, headers) in early() {
        let mut wire = Wire::open(&server);
        for _ in 0..3 {
            let head =
                format!("{target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
            // Half of the body is sent after the answer, so it is not there when the answer is made.
            wire.send(head.as_bytes());
            wire.send(&body[..70_000]);
            let answered = wire.answer();
            assert_eq!(answered.0, status, "{target} {headers}: {answered:?}");
            assert!(!says_close(&answered), "{target} {headers}");
            wire.send(&body[70_000..]);
            assert!(wire.is_open(), "{target} {headers}");
        }
    }
}

#[test]
fn an_answer_before_an_endless_body_says_close_and_arrives() {
    let dir = bundle();
    let server = Process::start(dir.path(), &["--api-key", "k", "--max-body", "100000"]);
    let chunk = [b"10000\r\n".to_vec(), vec![7; 0x10000], b"\r\n".to_vec()].concat();
    for (status, target, headers) in early() {
        let mut wire = Wire::open(&server);
        let head = format!("{target} HTTP/1.1\r\nHost: localhost\r\n{headers}Transfer-Encoding: chunked\r\n\r\n");
        wire.send(head.as_bytes());
        (0..3).for_each(|_| wire.send(&chunk));
        wire.send(b"0\r\n\r\n");
        let answered = wire.answer();
        assert_eq!(answered.0, status, "{target} {headers}: {answered:?}");
        assert!(says_close(&answered) && wire.has_ended(), "{target} {headers}");
    }
    // A whole chunked body keeps its connection.
    let mut wire = Wire::open(&server);
    let image = png(0);
    wire.send(
        format!("POST /embed HTTP/1.1\r\nHost: localhost\r\n{KEY}{PNG}Transfer-Encoding: chunked\r\n\r\n").as_bytes(),
    );
    wire.send(format!("{:x}\r\n", image.len()).as_bytes());
    wire.send(&image);
    wire.send(b"\r\n0\r\n\r\n");
    let answered = wire.answer();
    assert!(answered.0 == 200 && !says_close(&answered) && wire.is_open(), "{answered:?}");
}

#[test]
fn an_unsent_body_after_expect_is_not_waited_for() {
    let dir = bundle();
    let server = Process::start(dir.path(), &["--api-key", "k"]);
    for (status, target, headers) in early().into_iter().filter(|(status, ..)| *status != 413) {
        let mut wire = Wire::open(&server);
        let head = format!(
            "{target} HTTP/1.1\r\nHost: localhost\r\n{headers}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        );
        wire.send(head.as_bytes());
        let answered = wire.answer();
        assert_eq!(answered.0, status, "{target} {headers}: {answered:?}");
        assert!(says_close(&answered) && wire.has_ended(), "{target} {headers}");
    }
    let mut wire = Wire::open(&server);
    let image = png(0);
    let length = image.len();
    let expect = format!("{KEY}{PNG}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n");
    wire.send(format!("POST /embed HTTP/1.1\r\nHost: localhost\r\n{expect}").as_bytes());
    assert_eq!(wire.answer().0, 100);
    wire.send(&image);
    assert!(wire.answer().0 == 200 && wire.is_open());
    // After a body that arrives too slowly, the beginning of the next request is unknown.
    let server = Process::start(dir.path(), &["--body-timeout", "0.1"]);
    let mut wire = Wire::open(&server);
    wire.send(format!("POST /embed HTTP/1.1\r\nHost: localhost\r\n{PNG}Content-Length: 9\r\n\r\nabc").as_bytes());
    let answered = wire.answer();
    assert!(answered.0 == 408 && says_close(&answered) && wire.has_ended(), "{answered:?}");
}

#[test]
fn idle_connections_and_headers_have_different_timeouts() {
    let dir = bundle();
    let server = Process::start(dir.path(), &["--header-timeout", "0.2"]);
    let mut wire = Wire::open(&server);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(700));
        assert!(wire.is_open());
    }
    let server = Process::start(dir.path(), &["--keep-alive", "5"]);
    let (mut wire, mut silent) = (Wire::open(&server), Wire::open(&server));
    assert!(wire.is_open() && wire.has_ended() && silent.has_ended());
    let said = |path: &str| server.ask(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
    assert!(said("/info").contains("\"keep_alive_seconds\":5.0"));
    assert!(said("/metrics").lines().any(|l| l == "macrl_connections_accepted_total 4"), "{}", said("/metrics"));
}

#[test]
fn the_limit_of_connections_follows_the_limit_of_files() {
    let dir = bundle();
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 200; exec \"$0\" \"$@\"", BINARY])
        .args(["--listen", "127.0.0.1:0", "--device", "cpu", "--bundle"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next().unwrap().unwrap().strip_prefix("listening on ").unwrap().to_string();
    assert!(lines.next().unwrap().unwrap().starts_with("ready"));
    let mut warning = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut warning).unwrap();
    assert!(warning.contains("room for 72 connections, not 1024"), "{warning}");
    let server = Process { child, url };
    let idle: Vec<Wire> = (0..300).map(|_| Wire::open(&server)).collect();
    for _ in 0..20 {
        assert!(server.ask(&request(&png(0))).starts_with("HTTP/1.1 200"));
    }
    assert!(server.ask(b"GET /info HTTP/1.0\r\n\r\n").contains("\"connections\":72"));
    drop(idle);
}

#[test]
fn a_clients_methods_and_paths_create_no_time_series() {
    let dir = bundle();
    let server = Process::start(dir.path(), &["--api-key", "k"]);
    let mut wire = Wire::open(&server);
    for number in 0..200 {
        wire.send(format!("M{number} /embed/{number}?{number} HTTP/1.1\r\nHost: h{number}\r\n\r\n").as_bytes());
        assert_eq!(wire.answer().0, 404);
        wire.send(
            format!("X{number} /items/{number} HTTP/1.1\r\nHost: localhost\r\n{KEY}X-Request-Id: {number}\r\n\r\n")
                .as_bytes(),
        );
        assert_eq!(wire.answer().0, 405);
    }
    let page = server.ask(format!("GET /metrics HTTP/1.0\r\n{KEY}\r\n").as_bytes());
    let series: Vec<&str> = page.lines().filter(|l| l.starts_with("macrl_requests_total{")).collect();
    let expected = [
        "macrl_requests_total{route=\"/items/{id}\",method=\"OTHER\",status=\"405\"} 200",
        "macrl_requests_total{route=\"other\",method=\"OTHER\",status=\"404\"} 200",
    ];
    assert_eq!(series, expected);
}
