//! Limits of what a request and all responses may take in memory.

use macrl_serve::limits::Limits;
use macrl_serve::state::Settings;
use serde_json::{Value, json};

use crate::support::*;

fn repeated(element: &str, count: usize) -> String {
    vec![element; count].join(",")
}

#[tokio::test]
async fn long_lists_are_counted_and_refused() {
    let server = server();
    let post = async |path: &str, body: String| server.call("POST", path, "application/json", body).await;
    for (path, body) in [
        ("/items", format!("{{\"items\":[{}]}}", repeated("{}", 20_000))),
        ("/embed", format!("{{\"images\":[{}]}}", repeated("\"\"", 20_000))),
        ("/classify", format!("{{\"images\":[{}]}}", repeated("\"\"", 20_000))),
    ] {
        let answer = post(path, body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "too_many_images"), "{path}");
        let message = answer.json()["error"]["message"].clone();
        assert_eq!(message, "at most 64 images per request, found 20000", "{path}");
    }
    let answer = post("/search", format!("{{\"vector\":[{}]}}", repeated("0", 100_000))).await;
    assert_eq!(answer.status, 409);
    let message = answer.json()["error"]["message"].clone();
    assert_eq!(message, format!("expected a vector of {DIM} numbers, found 100000"));
}

#[tokio::test]
async fn the_length_of_metadata_and_filters_is_checked() {
    let server = server();
    let zeros = |bytes: usize| format!("{{\"x\":[{}]}}", repeated("0", bytes / 2));
    let vector = json!(vec![1.0; DIM]).to_string();
    let item = |id: &str, metadata: &str| format!("{{\"id\":\"{id}\",\"vector\":{vector},\"metadata\":{metadata}}}");
    // Twice the limit in white space, which is not stored.
    let spaced = format!("{{ {} \"a\": 1 }}", " ".repeat(32 << 10));
    let items = [item("long", &zeros(20 << 10)), item("very-long", &zeros(1 << 20)), item("spaced", &spaced)];
    let body = format!("{{\"items\":[{}]}}", items.join(","));
    let results = server.call("POST", "/items", "application/json", body).await.json()["results"].clone();
    for (index, found) in [(0, 20_000..21_000), (1, 1_000_000..1_100_000)] {
        let error = &results[index]["error"];
        let message = error["message"].as_str().unwrap();
        let number: usize = message.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(error["code"] == "malformed" && error["index"] == index && found.contains(&number), "{message}");
    }
    assert_eq!(results[2]["status"], "created");
    assert_eq!(server.get("/items/spaced").await.json()["metadata"], json!({ "a": 1 }));
    let filter = format!("{{\"id\":\"spaced\",\"filter\":{{\"x\":{{\"in\":[{}]}}}}}}", repeated("0", 200_000));
    let answer = server.call("POST", "/search", "application/json", filter).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "malformed"));
    assert!(answer.json()["error"]["message"].as_str().unwrap().starts_with("filter must be at most 262144 bytes"));
}

#[tokio::test]
async fn forms_have_limited_parts() {
    let server = server();
    let send = async |parts: &[(&str, Option<&str>, &[u8])]| {
        let (content_type, body) = form(parts);
        server.call("POST", "/embed", &content_type, body).await
    };
    let (image, field) = (("image", None, b"x" as &[u8]), ("normalize", None, b"true" as &[u8]));
    let answer = send(&[image; 70]).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "too_many_images"));
    assert_eq!(answer.json()["error"]["message"], "at most 64 images per request, found 70");
    let answer = send(&[field; 17]).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "malformed"));
    let png = png(1);
    let mixed: Vec<_> = [("image", None, png.as_slice())].into_iter().chain([field; 16]).collect();
    assert_eq!(send(&mixed).await.status, 200);
}

#[tokio::test]
async fn large_responses_are_counted_together() {
    let limits = Limits { response_bytes: 200_000, ..settings().limits };
    let server = server_with(Settings { limits, ..settings() });
    let item =
        |i: usize| json!({ "id": format!("{i:02}"), "vector": vec![1.0; DIM], "metadata": { "x": "y".repeat(8000) } });
    let items: Vec<Value> = (0..40).map(item).collect();
    assert_eq!(server.post_json("/items", json!({ "items": items })).await.status, 200);
    let page = server.get("/items?limit=20").await;
    assert!(page.status == 200 && page.body.len() > 160_000);
    assert_eq!(page.json()["items"].as_array().unwrap().len(), 20);
    assert_eq!(server.state.responses.used(), 0);
    let refused = server.get("/items?limit=40").await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "queue_full"));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(server.get("/items?limit=20").await.status, 200);
}
