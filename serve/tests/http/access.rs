//! Who may use the server: web pages, host names, keys and their roles.

use std::fs;
use std::path::Path;
use std::process::Command;

use axum::body::Body;
use axum::http::Request;
use macrl_serve::host_policy::HostPolicy;
use macrl_serve::keys::{Keys, Role};
use macrl_serve::state::Settings;
use serde_json::json;

use crate::process::{BINARY, bundle};
use crate::support::*;

/// Sends a request with these headers; its status and the error's code.
async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let body = if method == "PUT" { json!({ "vector": vec![1.0; DIM] }).to_string() } else { String::new() };
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = server.send(request.body(Body::from(body)).unwrap()).await;
    let code = if answer.status.is_success() { String::new() } else { answer.code() };
    (answer.status.as_u16(), code)
}

fn refused(code: &str) -> (u16, String) {
    let status = match code {
        "unknown_host" => 421,
        "unauthorized" => 401,
        _ => 403,
    };
    (status, code.into())
}

#[tokio::test]
async fn a_page_of_another_origin_can_neither_write_nor_read() {
    let server = server();
    let form = [("host", "127.0.0.1:8080"), ("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")];
    let (image, old) = ([form[0], form[2]], [form[0], form[1]]);
    for (method, path) in [
        ("PUT", "/items/a"),
        ("DELETE", "/items/a"),
        ("POST", "/items"),
        ("POST", "/embed"),
        ("GET", "/items"),
        ("GET", "/info"),
    ] {
        for headers in [&form[..], &image, &old] {
            assert_eq!(ask(&server, method, path, headers).await, refused("foreign_origin"), "{method} {path}");
        }
    }
    let own = [form[0], ("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")];
    assert_eq!(ask(&server, "PUT", "/items/a", &own).await.0, 201);
    assert_eq!(ask(&server, "PUT", "/items/a", &[]).await.0, 200);
    let cors_origins = vec!["http://evil.example".parse().unwrap()];
    let allowing = server_with(Settings { cors_origins, ..settings() });
    assert_eq!(ask(&allowing, "PUT", "/items/a", &form).await.0, 201);
    assert_eq!(ask(&allowing, "PUT", "/items/a", &image).await, refused("foreign_origin"));
}

#[tokio::test]
async fn without_a_key_only_own_names_are_answered() {
    let server = server();
    let rebound =
        [("host", "evil.example:8080"), ("origin", "http://evil.example:8080"), ("sec-fetch-site", "same-origin")];
    for (method, path) in
        [("GET", "/items"), ("PUT", "/items/a"), ("DELETE", "/items/a"), ("GET", "/v1/models"), ("GET", "/metrics")]
    {
        assert_eq!(ask(&server, method, path, &rebound).await, refused("unknown_host"), "{method} {path}");
    }
    assert_eq!(ask(&server, "GET", "http://evil.example/items", &[]).await, refused("unknown_host"));
    let twice = [("host", "127.0.0.1"), ("host", "evil.example")];
    assert_eq!(ask(&server, "GET", "/items", &twice).await, refused("unknown_host"));
    for host in ["localhost:8080", "127.0.0.1", "[::1]:8080"] {
        assert_eq!(ask(&server, "GET", "/items", &[("host", host)]).await.0, 200, "{host}");
    }
    // Probes of a balancer carry any name, and learn nothing.
    assert_eq!(ask(&server, "GET", "/health", &rebound).await.0, 200);
    assert_eq!(ask(&server, "GET", "/ready", &rebound).await.0, 200);
    let hosts = HostPolicy::new("0.0.0.0:80", &["images.example".parse().unwrap()]);
    let open = server_with(Settings { hosts, ..settings() });
    for (host, status) in [("images.example", 200), ("10.0.0.7:80", 200), ("macrl:8080", 200), ("evil.example", 421)] {
        assert_eq!(ask(&open, "GET", "/items", &[("host", host)]).await.0, status, "{host}");
    }
    let keyed = server_with(Settings { api_key: Some("k".into()), ..settings() });
    let request = [("host", "images.example"), ("authorization", "Bearer k")];
    assert_eq!(ask(&keyed, "GET", "/items", &request).await.0, 200);
}

#[tokio::test]
async fn a_role_decides_what_a_key_allows() {
    let mut keys = Keys::default();
    for (role, key) in [(Role::Read, "r"), (Role::Write, "w"), (Role::Admin, "a")] {
        keys.insert(role, key);
    }
    let server = server_with(Settings { keys, api_key: Some("single".into()), ..settings() });
    let routes = [
        ("GET", "/items", 1),
        ("GET", "/metrics", 1),
        ("PUT", "/items/x", 2),
        ("DELETE", "/items/x", 2),
        ("POST", "/admin/reload", 3),
    ];
    for (key, role) in [("Bearer r", 1), ("Bearer w", 2), ("Bearer a", 3), ("Bearer single", 3)] {
        for (method, path, needed) in routes {
            let (status, code) = ask(&server, method, path, &[("authorization", key)]).await;
            assert_eq!(code == "forbidden", role < needed, "{key} {method} {path}: {status}");
            assert_eq!(status == 403, role < needed, "{key} {method} {path}: {status}");
            assert_ne!(status, 401);
        }
    }
    for (method, path, _) in routes {
        for key in ["", "Bearer ", "Bearer x", "Bearer rr"] {
            assert_eq!(ask(&server, method, path, &[("authorization", key)]).await, refused("unauthorized"));
        }
    }
    let info = Request::get("/info").header("authorization", "Bearer r").body(Body::empty()).unwrap();
    let access = server.send(info).await.json()["access"].clone();
    assert_eq!((&access["key_required"], &access["roles"]), (&json!(true), &json!(["read", "write", "admin"])));
    // OpenAI's clients expect its form of the error.
    let other = Request::get("/v1/models").header("sec-fetch-site", "cross-site").body(Body::empty()).unwrap();
    assert_eq!(server.send(other).await.json()["error"]["type"], "permission_error");
}

#[tokio::test]
async fn every_answer_has_the_headers_that_bind_browsers() {
    let server = server();
    for path in ["/", "/docs", "/openapi.json", "/health", "/items", "/nothing"] {
        let headers = server.get(path).await.headers;
        assert_eq!(
            (&headers["x-content-type-options"], &headers["x-frame-options"]),
            (&"nosniff".parse().unwrap(), &"DENY".parse().unwrap())
        );
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        let is_page = ["/", "/docs"].contains(&path);
        assert_eq!(policy.contains("script-src 'self'"), is_page, "{path}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}

#[tokio::test]
async fn info_warns_of_an_open_server() {
    let hosts = HostPolicy::new("0.0.0.0:80", &[]);
    let warnings =
        async |settings: Settings| server_with(settings).get("/info").await.json()["access"]["warnings"].to_string();
    assert!(warnings(Settings { hosts: hosts.clone(), ..settings() }).await.contains("no key is asked for"));
    assert_eq!(warnings(settings()).await, "[]");
    let all = Settings { cors_origins: vec!["*".parse().unwrap()], ..settings() };
    assert!(warnings(all).await.contains("every web page"));
}

/// Exit code and stderr.
fn run(args: &[&str], bundle: &Path, key: Option<&std::ffi::OsStr>) -> (Option<i32>, String) {
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:1"]).arg("--bundle").arg(bundle).args(args).env_remove("MACRL_API_KEY");
    key.map(|key| command.env("MACRL_API_KEY", key));
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_key_that_cannot_be_used_ends_the_start() {
    use std::os::unix::ffi::OsStrExt;
    let (dir, at) = (bundle(), Path::new("/nowhere"));
    let bad = dir.path().join("keys");
    fs::write(&bad, "read secret\nroot other").unwrap();
    let unreadable = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    let bad = bad.to_str().unwrap();
    for (args, key) in [
        (&["--api-key", ""][..], None),
        (&["--api-key", " "], None),
        (&[], Some("".as_ref())),
        (&[], Some(unreadable)),
        (&["--api-keys", bad], None),
        (&["--api-keys", "/nowhere/keys"], None),
        (&["--allowed-host", "http://a"], None),
    ] {
        let (code, said) = run(args, at, key);
        assert_eq!((code, said.lines().count()), (Some(2), 1), "{args:?} {key:?}: {said}");
        assert!(!said.contains("secret") && !said.contains("other"), "{said}");
    }
}
