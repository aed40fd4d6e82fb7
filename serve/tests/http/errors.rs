//! Every kind of error: a client's mistake is a 4xx that says what was expected.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Request;
use macrl_bundle::decode::DecodeLimits;
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
    plain.state.start(macrl_bundle::bundle::Bundle::open(plain.dir.path()).unwrap()).unwrap();
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
    // An endless body without a length is cut off at the limit.
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
    let reserved = server.state.admit(2).unwrap();
    let three = json!({ "images": vec![base64(&png(0)); 3] });
    let answer = server.post_json("/embed", three.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "queue_full"));
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(server.post_image("/embed", png(0)).await.status, 200);
    drop(reserved);
    assert_eq!(server.post_json("/embed", three).await.status, 200);
    assert_eq!(server.state.gauges().await.in_flight, 0);
}

#[tokio::test]
async fn bodies_in_memory_are_bounded_together() {
    let server = limited(|limits| limits.buffered_bytes = 1000);
    let held = server.state.buffered.reserve(900).unwrap();
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
    // Requests on open connections are still answered.
    assert_eq!(server.post_image("/embed", png(0)).await.status, 200);
}

#[tokio::test]
async fn requests_without_the_key_are_401() {
    let server = server_with(Settings { api_key: Some("secret".into()), ..settings() });
    let ask = |key: &'static str| {
        let request = Request::get("/info").header("Authorization", key).body(Body::empty()).unwrap();
        server.send(request)
    };
    for wrong in ["", "secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret", "Bearersecret"] {
        assert_eq!(ask(wrong).await.code(), "unauthorized", "{wrong}");
    }
    for right in ["Bearer secret", "bearer secret", "BEARER   secret "] {
        assert_eq!(ask(right).await.status, 200, "{right}");
    }
    assert_eq!(server.post_image("/embed", png(0)).await.status, 401);
    assert_eq!(server.get("/metrics").await.status, 401);
    for open in ["/health", "/ready", "/", "/docs"] {
        assert_eq!(server.get(open).await.status, 200);
    }
}

fn with_origins(origins: &[&str]) -> Server {
    let cors_origins = origins.iter().map(|o| o.parse().unwrap()).collect();
    server_with(Settings { api_key: Some("k".into()), cors_origins, ..settings() })
}

#[tokio::test]
async fn only_configured_origins_are_allowed() {
    let server = with_origins(&["HTTPS://A.example:443/", "http://localhost:3000/"]);
    let ask = |origin: &'static str| {
        server.send(Request::get("/health").header("Origin", origin).body(Body::empty()).unwrap())
    };
    for origin in ["https://a.example", "http://localhost:3000"] {
        assert_eq!(ask(origin).await.headers["access-control-allow-origin"], origin);
    }
    for origin in ["https://b.example", "http://a.example", "https://a.example:444", "null", "http://localhost"] {
        assert!(!ask(origin).await.headers.contains_key("access-control-allow-origin"), "{origin}");
    }
    assert!(!crate::support::server().get("/health").await.headers.contains_key("access-control-allow-origin"));
    let all = with_origins(&["*"]);
    let any = Request::get("/health").header("Origin", "https://b.example").body(Body::empty()).unwrap();
    assert_eq!(all.send(any).await.headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn a_page_may_send_the_key_and_read_a_refusal() {
    let server = with_origins(&["https://a.example"]);
    let preflight = Request::options("/embed")
        .header("Origin", "https://a.example")
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", "authorization,content-type,x-stainless-os")
        .body(Body::empty())
        .unwrap();
    let answer = server.send(preflight).await;
    // Without the key: browsers send none with a preflight.
    assert!(answer.status.is_success(), "{answer:?}");
    let allowed = answer.headers["access-control-allow-headers"].to_str().unwrap().to_ascii_lowercase();
    assert!(["authorization", "content-type", "x-stainless-os"].iter().all(|h| allowed.contains(h)), "{allowed}");
    let request = Request::post("/embed").header("Origin", "https://a.example").header("Content-Type", "image/png");
    let refused = server.send(request.body(Body::from(png(0))).unwrap()).await;
    assert_eq!((refused.status.as_u16(), refused.headers["www-authenticate"].to_str().unwrap()), (401, "Bearer"));
    assert_eq!(refused.headers["access-control-allow-origin"], "https://a.example");
    let exposed = refused.headers["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("retry-after") && exposed.contains("x-request-id"), "{exposed}");
}

#[tokio::test]
async fn encoded_bodies_are_decoded_within_the_limits_and_other_codings_are_refused() {
    use std::io::Write;
    let server = limited(|limits| limits.body_bytes = 100_000);
    let pack = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let post = |kind: &'static str, coding: &'static str, body: Vec<u8>| {
        let request = Request::post("/embed").header("Content-Type", kind).header("Content-Encoding", coding);
        server.send(request.body(Body::from(body)).unwrap())
    };
    let expected = server.post_image("/embed", png(0)).await.json()["embeddings"].clone();
    let json = json!({ "images": [base64(&png(0))] }).to_string();
    let (form_type, form_body) = form(&[("image", Some("a.png"), &png(0))]);
    assert_eq!(form_type, "multipart/form-data; boundary=XX");
    for answer in [
        post("image/png", "gzip", pack(&png(0))).await,
        post("image/png", "X-GZIP", pack(&png(0))).await,
        post("image/png", "identity", png(0)).await,
        post("application/json", "gzip, gzip", pack(&pack(json.as_bytes()))).await,
        post("multipart/form-data; boundary=XX", "gzip", pack(&form_body)).await,
    ] {
        assert_eq!(answer.json()["embeddings"], expected);
    }
    let bomb = post("image/png", "gzip", pack(&vec![0; 20_000_000])).await;
    assert_eq!((bomb.status.as_u16(), bomb.code().as_str()), (413, "body_too_large"));
    let cut = pack(&png(0));
    assert_eq!(post("image/png", "gzip", cut[..cut.len() - 9].to_vec()).await.code(), "malformed");
    assert_eq!(post("image/png", "gzip", png(0)).await.code(), "malformed");
    let other = post("image/png", "compress", png(0)).await;
    assert_eq!((other.status.as_u16(), other.code().as_str()), (415, "unsupported_encoding"));
    assert!(other.json()["error"]["message"].as_str().unwrap().ends_with("found `compress`"));
    assert_eq!(other.headers["accept-encoding"], "gzip, deflate, br, zstd");
    assert_eq!(server.state.buffered.used(), 0);
}

#[tokio::test]
async fn an_unencoded_slash_in_an_id_gets_a_hint() {
    let server = server();
    for (method, path, right) in [
        ("PUT", "/items/a/b.png", "/items/a%2Fb.png"),
        ("GET", "/items/2019/Rome%20trip/x.jpg", "/items/2019%2FRome%20trip%2Fx.jpg"),
        ("GET", "/items/a/b.png/image", "/items/a%2Fb.png/image"),
    ] {
        let answer = server.call(method, path, "image/png", png(0)).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "not_found"));
        let message = answer.json()["error"]["message"].as_str().unwrap().to_string();
        assert!(message.ends_with(&format!("slashes in an id are written %2F: {right}")), "{message}");
        assert!(!server.call("GET", right, "", "").await.json()["error"]["message"].as_str().unwrap().contains("%2F"));
    }
}

#[tokio::test]
async fn answers_carry_a_request_id() {
    let server = server();
    let given = Request::get("/health").header("X-Request-Id", "abc").body(Body::empty()).unwrap();
    assert_eq!(server.send(given).await.headers["x-request-id"], "abc");
    let (first, second) = (server.get("/health").await, server.get("/nothing").await);
    assert_ne!(first.headers["x-request-id"], second.headers["x-request-id"]);
}
