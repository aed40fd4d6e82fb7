//! Every error of the table: a client's mistake is a 4xx that says what was expected.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Request;
use macrl_models::decode::DecodeLimits;
use macrl_serve::limits::Limits;
use macrl_serve::state::Settings;
use serde_json::json;

use crate::support::*;

fn limited(change: impl FnOnce(&mut Limits)) -> Server {
    let mut settings = settings();
    change(&mut settings.limits);
    server_with(settings)
}

#[tokio::test]
async fn malformed_requests_are_400() {
    let server = server();
    let image = base64(&png(0));
    let deep = format!("{{\"images\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (path, body) in [
        ("/embed", "{".to_string()),
        ("/embed", "[]".into()),
        ("/embed", json!({}).to_string()),
        ("/embed", json!({ "images": [] }).to_string()),
        ("/embed", json!({ "images": "x" }).to_string()),
        ("/embed", json!({ "images": ["not base64!"] }).to_string()),
        ("/embed", json!({ "images": ["data:image/png,abc"] }).to_string()),
        ("/embed", json!({ "images": ["https://example.org/cat.png"] }).to_string()),
        ("/embed", json!({ "images": [image], "normalise": true }).to_string()),
        ("/embed", json!({ "images": [image], "encoding_format": "hex" }).to_string()),
        ("/embed?normalize=maybe", json!({ "images": [image] }).to_string()),
        ("/embed?colour=1", json!({ "images": [image] }).to_string()),
        ("/embed", deep),
        ("/classify?top_k=-1", json!({ "images": [image] }).to_string()),
        ("/classify?top_k=many", json!({ "images": [image] }).to_string()),
        ("/search", json!({}).to_string()),
        ("/search", json!({ "id": "a", "image": image }).to_string()),
        ("/search?k=0", json!({ "image": image }).to_string()),
        ("/search?k=1001", json!({ "image": image }).to_string()),
        ("/search?k=99999999999999999999", json!({ "image": image }).to_string()),
        ("/search", json!({ "vector": [0, 0, 0, 0, 0, 0, 0, 0] }).to_string()),
        ("/search", json!({ "vector": [1e39, 0, 0, 0, 0, 0, 0, 0] }).to_string()),
        ("/search", json!({ "vector": ["1"] }).to_string()),
        ("/search", json!({ "image": image, "filter": [1] }).to_string()),
        ("/items", json!({ "items": [] }).to_string()),
        ("/v1/embeddings", json!({ "model": "m", "input": [] }).to_string()),
        ("/v1/embeddings", json!({ "model": "m", "input": "a cat, please!" }).to_string()),
    ] {
        let short: String = body.chars().take(80).collect();
        let answer = server.call("POST", path, "application/json", body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "malformed"), "{path} {short}: {answer:?}");
    }
    for path in ["/items?limit=0", "/items?limit=x", "/items?limit=100000", "/items/a?vector=perhaps"] {
        assert_eq!(server.get(path).await.code(), "malformed", "{path}");
    }
    for path in ["/items/%ff", "/items/%0a", &format!("/items/{}", "a".repeat(513))] {
        let answer = server.call("PUT", path, "image/png", png(0)).await;
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
    }
    let metadata = json!({ "image": image, "metadata": { "long": "x".repeat(20_000) } });
    assert_eq!(server.call("PUT", "/items/a", "application/json", metadata.to_string()).await.code(), "malformed");
    let other = json!({ "id": "b", "image": image });
    assert_eq!(server.call("PUT", "/items/a", "application/json", other.to_string()).await.code(), "malformed");
}

#[tokio::test]
async fn broken_forms_are_400() {
    let server = server();
    let (form_type, unknown) = form(&[("colour", None, b"red")]);
    let (_, two) = form(&[("image", Some("a"), &png(0)), ("image", Some("b"), &png(1))]);
    for (path, content_type, body) in [
        ("/embed", "multipart/form-data", Vec::new()),
        ("/embed", &*form_type, b"no form at all".to_vec()),
        ("/embed", &*form_type, Vec::new()),
        ("/embed", &*form_type, unknown),
        ("/search", &*form_type, two),
    ] {
        let answer = server.call("POST", path, content_type, body).await;
        assert_eq!(answer.code(), "malformed", "{path} {content_type}: {answer:?}");
    }
}

#[tokio::test]
async fn unknown_things_are_404_and_wrong_methods_405() {
    let server = server();
    assert_eq!(server.get("/nothing").await.code(), "not_found");
    assert_eq!(server.get("/items/nobody").await.code(), "not_found");
    assert_eq!(server.get("/items/nobody/image").await.code(), "not_found");
    assert_eq!(server.post_json("/search", json!({ "id": "nobody" })).await.code(), "not_found");
    assert_eq!(server.get("/embed").await.code(), "method_not_allowed");
    assert_eq!(server.get("/embed").await.status, 405);
    let plain = unstarted(settings(), false);
    plain.state.start(macrl_models::bundle::Bundle::open(plain.dir.path()).unwrap()).unwrap();
    let answer = plain.post_image("/classify", png(0)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "not_found"));
    assert_eq!(plain.post_image("/embed", png(0)).await.status, 200);
}

#[tokio::test]
async fn a_vector_of_another_length_is_409() {
    let server = server();
    for answer in [
        server.post_json("/search", json!({ "vector": [1, 2, 3] })).await,
        server.post_json("/search", json!({ "vector": [] })).await,
        server.call("PUT", "/items/a", "application/json", json!({ "vector": [1] }).to_string()).await,
        server.post_json("/v1/embeddings", json!({ "input": base64(&png(0)), "dimensions": 3 })).await,
    ] {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (409, "dimension_mismatch"));
    }
}

#[tokio::test]
async fn too_much_is_413() {
    let server = limited(|limits| {
        limits.body_bytes = 10_000;
        limits.images = 3;
        limits.decode = DecodeLimits { max_pixels: 1000, ..DecodeLimits::default() };
    });
    let announced = Request::post("/embed").header("Content-Type", "image/png").header("Content-Length", "10001");
    assert_eq!(server.send(announced.body(Body::empty()).unwrap()).await.code(), "body_too_large");
    // Without a length, an endless body is cut off where the limit is.
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 1000])));
    let answer = server.call("POST", "/embed", "image/png", Body::from_stream(endless)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "body_too_large"));
    let four = json!({ "images": vec![base64(&png(0)); 4] });
    assert_eq!(server.post_json("/embed", four).await.code(), "too_many_images");
    let items = json!({ "items": (0..4).map(|i| json!({ "id": i.to_string(), "image": base64(&png(0)) })).collect::<Vec<_>>() });
    assert_eq!(server.post_json("/items", items).await.code(), "too_many_images");
    let large = encode(image::RgbImage::new(40, 26), image::ImageFormat::Png);
    let answer = server.post_json("/embed", json!({ "images": [base64(&png(0)), base64(&large)] })).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "image_too_large"));
    assert_eq!(answer.json()["error"]["index"], 1);
}

#[tokio::test]
async fn a_full_index_is_413() {
    let server = limited(|limits| limits.index_bytes = 2000);
    let mut statuses = Vec::new();
    for i in 0..5 {
        statuses.push(server.call("PUT", &format!("/items/{i}"), "image/png", png(i)).await);
    }
    assert_eq!(statuses[0].status, 201);
    assert_eq!((statuses[4].status.as_u16(), statuses[4].code().as_str()), (413, "index_full"));
}

#[tokio::test]
async fn other_content_types_are_415() {
    let server = server();
    for content_type in
        ["", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded", "image", ";"]
    {
        let answer = server.call("POST", "/embed", content_type, png(0)).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (415, "unsupported_type"), "{content_type}");
    }
    assert_eq!(server.call("POST", "/embed", "Image/PNG; q=1", png(0)).await.status, 200);
    assert_eq!(server.post_image("/v1/embeddings", png(0)).await.status, 415);
}

#[tokio::test]
async fn undecodable_images_are_422_and_named() {
    let server = server();
    let whole = png(0);
    for bytes in
        [Vec::new(), b"hello".to_vec(), whole[..40].to_vec(), b"\x89PNG\r\n\x1a\n".to_vec(), b"<svg/>".to_vec()]
    {
        let answer = server.post_image("/embed", bytes).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, "image_undecodable"));
    }
    let answer = server.post_json("/embed", json!({ "images": [base64(&whole), base64(&whole), base64(b"x")] })).await;
    assert_eq!(answer.json()["error"]["index"], 2);
}

#[tokio::test]
async fn a_full_queue_is_429_with_retry_after_and_recovers() {
    let server = limited(|limits| (limits.queue, limits.images) = (4, 4));
    let room = server.state.admit(2).unwrap();
    let three = json!({ "images": vec![base64(&png(0)); 3] });
    let answer = server.post_json("/embed", three.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "queue_full"));
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(server.post_image("/embed", png(0)).await.status, 200);
    drop(room);
    assert_eq!(server.post_json("/embed", three).await.status, 200);
    assert_eq!(server.state.gauges().await.in_flight, 0);
}

#[tokio::test]
async fn bodies_in_memory_are_bounded_together() {
    let server = limited(|limits| limits.buffered_bytes = 1000);
    let held = server.state.buffered.take(900).unwrap();
    assert_eq!(server.post_image("/embed", vec![0; 200]).await.status, 429);
    drop(held);
    assert_eq!(server.post_image("/embed", png(0)).await.status, 200);
    assert_eq!(server.state.buffered.used(), 0);
}

#[tokio::test]
async fn a_body_that_never_comes_is_408() {
    let server = limited(|limits| limits.body_timeout = Duration::from_millis(50));
    let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let answer = server.call("POST", "/embed", "image/png", Body::from_stream(never)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (408, "body_timeout"));
}

#[tokio::test]
async fn no_answer_in_time_is_503() {
    let server = limited(|limits| limits.request_timeout = Duration::from_millis(1));
    // Four megapixels are not decoded within a millisecond.
    let large = encode(image::RgbImage::new(2000, 2000), image::ImageFormat::Png);
    let answer = server.post_image("/embed", large).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "timeout"));
    assert_eq!(server.state.gauges().await.in_flight, 0);
}

#[tokio::test]
async fn without_a_model_and_while_stopping_it_is_503() {
    let server = unstarted(settings(), true);
    assert_eq!(server.get("/health").await.status, 200);
    for answer in [server.get("/ready").await, server.get("/info").await, server.post_image("/embed", png(0)).await] {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "starting"));
    }
    let server = crate::support::server();
    server.state.stop();
    let answer = server.get("/ready").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "stopping"));
    // What still comes in on open connections is answered.
    assert_eq!(server.post_image("/embed", png(0)).await.status, 200);
}

#[tokio::test]
async fn a_key_is_asked_for_where_one_is_set() {
    let server = server_with(Settings { api_key: Some("secret".into()), ..settings() });
    let ask = |key: &'static str| {
        let request = Request::get("/info").header("Authorization", key).body(Body::empty()).unwrap();
        server.send(request)
    };
    for wrong in ["", "secret", "Bearer", "Bearer secre", "Bearer secrets", "Basic secret"] {
        assert_eq!(ask(wrong).await.code(), "unauthorized", "{wrong}");
    }
    assert_eq!(ask("Bearer secret").await.status, 200);
    assert_eq!(server.post_image("/embed", png(0)).await.status, 401);
    assert_eq!(server.get("/metrics").await.status, 401);
    for open in ["/health", "/ready", "/", "/docs"] {
        assert_eq!(server.get(open).await.status, 200);
    }
}

#[tokio::test]
async fn origins_are_only_those_that_were_named() {
    let server = server_with(Settings { cors_origins: vec!["https://a.example".into()], ..settings() });
    let ask = |origin: &'static str| {
        server.send(Request::get("/health").header("Origin", origin).body(Body::empty()).unwrap())
    };
    assert_eq!(ask("https://a.example").await.headers["access-control-allow-origin"], "https://a.example");
    assert!(!ask("https://b.example").await.headers.contains_key("access-control-allow-origin"));
    assert!(!crate::support::server().get("/health").await.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn answers_carry_a_request_id() {
    let server = server();
    let given = Request::get("/health").header("X-Request-Id", "abc").body(Body::empty()).unwrap();
    assert_eq!(server.send(given).await.headers["x-request-id"], "abc");
    let (first, second) = (server.get("/health").await, server.get("/nothing").await);
    assert_ne!(first.headers["x-request-id"], second.headers["x-request-id"]);
}
