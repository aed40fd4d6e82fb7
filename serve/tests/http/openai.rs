//! OpenAI's routes as its clients use them: what is accepted, and errors in their shape.

use axum::body::Body;
use axum::http::Request;
use macrl_bundle::decode::DecodeLimits;
use macrl_serve::limits::Limits;
use macrl_serve::state::Settings;
use serde_json::{Value, json};

use crate::support::*;

fn uri(seed: u32) -> String {
    format!("data:image/png;base64,{}", base64(&png(seed)))
}

fn vectors(answer: &Answer) -> Vec<Vec<f32>> {
    let json = answer.json();
    json["data"].as_array().unwrap().iter().map(|d| floats(&d["embedding"])).collect()
}

/// Checks OpenAI's shape; type, param, code.
fn error(answer: &Answer) -> (String, Value, String) {
    let error = answer.json()["error"].clone();
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty() && !m.contains('\n')), "{error}");
    assert!(error.as_object().unwrap().contains_key("param"), "{error}");
    let text = |key: &str| error[key].as_str().unwrap().to_string();
    (text("type"), error["param"].clone(), text("code"))
}

#[tokio::test]
async fn every_form_of_an_image_is_accepted() {
    let server = server();
    let expected = vectors(&server.post_json("/v1/embeddings", json!({ "input": uri(0) })).await);
    let urlsafe = base64(&png(0)).replace('+', "-").replace('/', "_");
    for input in [
        json!([uri(0)]),
        json!([{ "type": "image_url", "image_url": { "url": uri(0), "detail": "auto" } }]),
        json!([{ "type": "image_url", "image_url": uri(0) }]),
        json!({ "type": "image_url", "image_url": { "url": uri(0) } }),
        json!([base64(&png(0))]),
        json!([urlsafe.trim_end_matches('=')]),
        json!([format!("DATA:image/png;charset=x;base64,{urlsafe}")]),
    ] {
        let answer = server.post_json("/v1/embeddings", json!({ "model": "m", "input": input })).await;
        assert_eq!(answer.status, 200, "{input}: {}", answer.json());
        assert_eq!(vectors(&answer), expected, "{input}");
    }
    // `dimensions` may be the model's own.
    let body = json!({ "input": uri(0), "dimensions": DIM, "encoding_format": null, "user": "x" });
    assert_eq!(server.post_json("/v1/embeddings", body).await.status, 200);
}

#[tokio::test]
async fn text_for_a_language_model_gets_its_own_message() {
    let server = server();
    for (input, words, index) in [
        (json!("a cat, please!"), "found the text \"a cat, please!\"", Some(0)),
        (json!("test"), "found the text \"test\"", Some(0)),
        (
            json!([uri(0), "The quick brown fox jumps over the lazy dog"]),
            "found the text \"The quick brown fox",
            Some(1),
        ),
        (json!([1, 2, 3]), "found token ids", Some(0)),
        (json!([[1, 2], [3]]), "found token ids", Some(0)),
        (json!([{ "type": "text", "text": "a cat" }]), "found an object of type `text`", Some(0)),
        (json!([]), "found none", None),
    ] {
        let answer = server.post_json("/v1/embeddings", json!({ "input": input })).await;
        assert_eq!(answer.status, 400, "{input}");
        assert_eq!(error(&answer), ("invalid_request_error".into(), json!("input"), "malformed".into()), "{input}");
        let error = answer.json()["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert!(index.is_none() || message.contains("images are expected as data URIs"), "{message}");
        assert_eq!(error["index"].as_u64(), index, "{message}");
    }
}

#[tokio::test]
async fn errors_have_openais_fields_and_no_status_that_clients_retry_in_vain() {
    let decode = DecodeLimits { max_pixels: 1000, ..DecodeLimits::default() };
    let limits = Limits { decode, ..Limits::default() };
    let server = server_with(Settings { api_key: Some("k".into()), limits, ..settings() });
    let ask = |method: &'static str, path: &'static str, kind: &'static str, body: String| {
        let request = Request::builder().method(method).uri(path).header("Authorization", "bearer  k");
        server.send(request.header("Content-Type", kind).body(Body::from(body)).unwrap())
    };
    let embed = |body: Value| ask("POST", "/v1/embeddings", "application/json", body.to_string());
    let invalid = "invalid_request_error";
    let large = base64(&encode(image::RgbImage::new(40, 26), image::ImageFormat::Png));
    for (answer, status, kind, param, code) in [
        (embed(json!({ "input": uri(0), "dimensions": 3 })).await, 400, invalid, json!("dimensions"), "malformed"),
        (embed(json!({ "input": uri(0), "dimensions": -1 })).await, 400, invalid, json!("dimensions"), "malformed"),
        (
            embed(json!({ "input": uri(0), "encoding_format": "hex" })).await,
            400,
            invalid,
            json!("encoding_format"),
            "malformed",
        ),
        (embed(json!({})).await, 400, invalid, json!("input"), "malformed"),
        (embed(json!({ "input": vec![uri(0); 65] })).await, 413, invalid, json!("input"), "too_many_images"),
        (embed(json!({ "input": [large] })).await, 413, invalid, json!("input"), "image_too_large"),
        (
            embed(json!({ "input": format!("data:image/png;base64,{}", base64(b"no image")) })).await,
            422,
            invalid,
            json!("input"),
            "image_undecodable",
        ),
        (embed(json!(3)).await, 400, invalid, Value::Null, "malformed"),
        (
            ask("POST", "/v1/embeddings", "image/png", String::new()).await,
            415,
            invalid,
            Value::Null,
            "unsupported_type",
        ),
        (ask("GET", "/v1/embeddings", "", String::new()).await, 405, invalid, Value::Null, "method_not_allowed"),
        (
            ask("POST", "/v1/chat/completions", "application/json", "{}".into()).await,
            404,
            invalid,
            Value::Null,
            "not_found",
        ),
        (ask("GET", "/v1/models/gpt-4", "", String::new()).await, 404, invalid, json!("model"), "not_found"),
        (
            server.post_json("/v1/embeddings", json!({ "input": uri(0) })).await,
            401,
            "authentication_error",
            Value::Null,
            "unauthorized",
        ),
        (server.get("/v1/models").await, 401, "authentication_error", Value::Null, "unauthorized"),
    ] {
        assert_eq!(answer.status.as_u16(), status, "{}", answer.json());
        assert_eq!(error(&answer), (kind.into(), param, code.into()));
    }
    let starting = unstarted(settings(), true);
    let answer = starting.post_json("/v1/embeddings", json!({ "input": uri(0) })).await;
    assert_eq!((answer.status.as_u16(), error(&answer).0.as_str()), (503, "server_error"));
    // Other routes keep their own form of errors.
    assert!(server.get("/info").await.json()["error"].get("type").is_none());
}

#[tokio::test]
async fn the_one_model_is_listed() {
    let server = server();
    let list = server.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!((model["id"].as_str(), model["object"].as_str()), (Some("tiny"), Some("model")));
    assert!(model["created"].as_u64().unwrap() > 1_600_000_000 && model["owned_by"].is_string());
    assert_eq!(&server.get("/v1/models/tiny").await.json(), model);
    // Names on Hugging Face have slashes, which clients may or may not encode.
    let named = unstarted(settings(), false);
    write_bundle(named.dir.path(), "user/tiny", false);
    named.state.start(macrl_bundle::bundle::Bundle::open(named.dir.path()).unwrap()).unwrap();
    for path in ["/v1/models/user/tiny", "/v1/models/user%2Ftiny"] {
        assert_eq!(named.get(path).await.json()["id"], "user/tiny", "{path}");
    }
}

#[tokio::test]
async fn more_inputs_than_a_queue_holds_are_embedded_in_steps_and_in_order() {
    let limits = Limits { images: 8, queue: 8, inputs: 100, ..Limits::default() };
    let server = server_with(Settings { limits, ..settings() });
    let input: Vec<String> = (0..100).map(uri).collect();
    let answer = server.post_json("/v1/embeddings", json!({ "input": input })).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let found = vectors(&answer);
    assert_eq!(found.len(), 100);
    for seed in [0, 7, 8, 57, 99] {
        let alone = vectors(&server.post_json("/v1/embeddings", json!({ "input": uri(seed) })).await);
        assert!(close(&found[seed as usize], &alone[0]), "{seed}");
    }
    let mut broken = input.clone();
    broken[60] = format!("data:image/png;base64,{}", base64(b"no image"));
    let answer = server.post_json("/v1/embeddings", json!({ "input": broken })).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"]["index"].as_u64()), (422, Some(60)));
    let more = vec![uri(0); 101];
    assert_eq!(server.post_json("/v1/embeddings", json!({ "input": more })).await.status, 413);
    // Other routes keep their limit, and a full queue refuses the first step.
    assert_eq!(server.post_json("/embed", json!({ "images": vec![base64(&png(0)); 9] })).await.status, 413);
    let _room = server.state.admit(8).unwrap();
    let answer = server.post_json("/v1/embeddings", json!({ "input": input })).await;
    assert_eq!((answer.status.as_u16(), error(&answer).0.as_str()), (429, "rate_limit_error"));
    assert!(answer.headers.contains_key("retry-after") && error(&answer).1.is_null());
}
