//! `/embed`, `/classify`, `/v1/embeddings`, `/info` and the pages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::*;

// onnxruntime 1.31.1 in Python, x, y = np.meshgrid(np.arange(8), np.arange(8)):
//   px = np.stack([(x * 16 + y * 3 + c * 40) % 256 for c in range(3)])
//   run(["pooler_output"], {"pixel_values": ((px / 255 - 0.5) / 0.25)[None].astype(np.float32)})
const POOLED: [f32; DIM] = [0.1217206, 0.104627, 0.0733507, 0.0319976, -0.0137971, -0.0576728, -0.0935867, -0.1167473];

fn unit(vector: &[f32]) -> Vec<f32> {
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter().map(|v| v / norm).collect()
}

#[tokio::test]
async fn every_form_of_an_image_gives_the_reference_embedding() {
    let server = server();
    let image = png(0);
    let (form_type, form_body) = form(&[("image", Some("a.png"), &image), ("file", Some("b.png"), &png(1))]);
    let answers = [
        server.post_image("/embed", image.clone()).await,
        server.post_json("/embed", json!({ "images": [base64(&image)] })).await,
        server
            .post_json(
                "/embed",
                json!({ "images": [format!("data:image/png;base64,{}", base64(&image)), base64(&png(1))] }),
            )
            .await,
        server.call("POST", "/embed", &form_type, form_body).await,
    ];
    for answer in &answers {
        assert_eq!(answer.status, 200, "{answer:?}");
        let json = answer.json();
        assert_eq!((json["model"].as_str(), json["dim"].as_u64()), (Some("tiny"), Some(DIM as u64)));
        assert!(close(&floats(&json["embeddings"][0]), &unit(&POOLED)), "{json}");
    }
    assert_eq!(answers[3].json()["embeddings"], answers[2].json()["embeddings"]);
    assert_eq!(answers[2].json()["embeddings"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn options_are_taken_from_query_json_and_form() {
    let server = server();
    let image = png(0);
    let (form_type, form_body) = form(&[("image", Some("a"), &image), ("normalize", None, b"false")]);
    for answer in [
        server.post_image("/embed?normalize=false", image.clone()).await,
        server.post_json("/embed", json!({ "images": [base64(&image)], "normalize": false })).await,
        server.call("POST", "/embed", &form_type, form_body).await,
    ] {
        assert!(close(&floats(&answer.json()["embeddings"][0]), &POOLED), "{answer:?}");
    }
    let packed = server.post_json("/embed", json!({ "images": [base64(&image)], "encoding_format": "base64" })).await;
    assert!(close(&unpack(&packed.json()["embeddings"][0]), &unit(&POOLED)));
}

fn unpack(value: &Value) -> Vec<f32> {
    let bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[tokio::test]
async fn openais_shape() {
    let server = server();
    let uri = format!("data:image/png;base64,{}", base64(&png(0)));
    let one = server.post_json("/v1/embeddings", json!({ "model": "m", "input": uri, "user": "x" })).await.json();
    assert_eq!((one["object"].as_str(), one["model"].as_str()), (Some("list"), Some("m")));
    assert!(close(&floats(&one["data"][0]["embedding"]), &unit(&POOLED)));
    // 1 + 4 tokens an image.
    assert_eq!(one["usage"]["total_tokens"], 5);
    let body = json!({ "model": "m", "input": [uri, uri], "encoding_format": "base64" });
    let two = server.post_json("/v1/embeddings", body).await.json();
    assert_eq!(two["data"][1]["index"], 1);
    assert!(close(&unpack(&two["data"][1]["embedding"]), &unit(&POOLED)));
}

#[tokio::test]
async fn classes_are_the_probes_best_first() {
    let server = server();
    // softmax of weight . pooled + bias, weight[c, i] = cos(0.7 (8 c + i)).
    let logits: Vec<f64> = (0..3)
        .map(|c| {
            let row = (0..DIM).map(|i| f64::from((((c * DIM + i) as f32) * 0.7).cos()) * f64::from(POOLED[i]));
            row.sum::<f64>() + [0.0, 0.1, -0.1][c]
        })
        .collect();
    let total: f64 = logits.iter().map(|l| l.exp()).sum();
    let mut expected: Vec<(&str, f64)> =
        ["red", "green", "blue"].into_iter().zip(logits.iter().map(|l| l.exp() / total)).collect();
    expected.sort_by(|a, b| b.1.total_cmp(&a.1));

    let answer = server.post_image("/classify?top_k=2", png(0)).await.json();
    let found = answer["predictions"][0].as_array().unwrap().clone();
    assert_eq!(found.len(), 2);
    for (found, (label, score)) in found.iter().zip(&expected) {
        assert_eq!(found["label"], *label);
        assert!((found["score"].as_f64().unwrap() - score).abs() < 1e-5);
    }
    // More than the probe has: all classes.
    let all = server.post_image("/classify?top_k=50", png(0)).await.json();
    assert_eq!(all["predictions"][0].as_array().unwrap().len(), 3);
    assert_eq!(server.post_image("/classify?top_k=0", png(0)).await.status, 400);
    // A search can have the classes, too: the image is sent once.
    let both = server.post_image("/search?top_k=2&vector=true", png(0)).await.json();
    assert_eq!(both["predictions"], answer["predictions"][0]);
    assert_eq!(both["vector"].as_array().unwrap().len(), DIM);
    assert_eq!(server.post_image("/search?top_k=0", png(0)).await.status, 400);
    let plain = server.post_image("/search", png(0)).await.json();
    assert!(plain.get("predictions").is_none() && plain.get("vector").is_none());
}

#[tokio::test]
async fn many_images_at_once_keep_their_order() {
    let server = server();
    let images: Vec<String> = (0..30).map(|i| base64(&png(i))).collect();
    let together = server.post_json("/embed", json!({ "images": images })).await.json();
    for (i, embedding) in together["embeddings"].as_array().unwrap().iter().enumerate() {
        let alone = server.post_image("/embed", png(i as u32)).await.json();
        assert!(close(&floats(embedding), &floats(&alone["embeddings"][0])), "image {i}");
    }
}

#[tokio::test]
async fn the_server_describes_itself() {
    let server = server();
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ready").await.status, 200);
    let info = server.get("/info").await.json();
    assert_eq!((info["model"]["dim"].as_u64(), info["device"].as_str()), (Some(8), Some("cpu")));
    assert_eq!(info["model"]["labels"], json!(["red", "green", "blue"]));
    let limits = &info["limits"];
    assert_eq!((limits["images_per_request"].as_u64(), limits["keep_alive_seconds"].as_f64()), (Some(64), Some(75.0)));
    // One image in each decoder at least, and the bodies.
    let (one, all) = (limits["decoder_bytes_per_image"].as_u64().unwrap(), limits["bytes_of_all_requests"].as_u64());
    assert!(all.unwrap() >= 2 * one + limits["buffered_bytes"].as_u64().unwrap());
    server.post_image("/embed", png(0)).await;
    server.post_image("/embed", b"no".to_vec()).await;
    let metrics = String::from_utf8(server.get("/metrics").await.body).unwrap();
    for line in [
        "macrl_requests_total{route=\"/embed\",method=\"POST\",status=\"200\"} 1",
        "macrl_requests_total{route=\"/embed\",method=\"POST\",status=\"422\"} 1",
        "macrl_rejections_total{code=\"image_undecodable\"} 1",
        "macrl_images_total 1",
        "macrl_device{device=\"cpu\"} 1",
        "macrl_request_seconds_count{route=\"/embed\",method=\"POST\"} 2",
        "macrl_request_seconds_bucket{route=\"/embed\",method=\"POST\",le=\"+Inf\"} 2",
        "macrl_ready 1",
        "macrl_index_up 1",
        "macrl_connections 0",
        "macrl_connections_limit 1024",
        "macrl_model_info{name=\"tiny\",weights_sha256=\"tiny\"} 1",
        concat!("macrl_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn pages_and_the_description_need_no_network() {
    let server = server();
    for path in ["/", "/docs"] {
        let answer = server.get(path).await;
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/html"));
        let page = String::from_utf8(answer.body).unwrap();
        assert!(!page.contains("src=\"http") && !page.contains("href=\"http") && !page.contains("@import"));
    }
    for (file, kind) in [("search.js", "text/javascript"), ("search.css", "text/css")] {
        let answer = server.get(&format!("/page/{file}")).await;
        assert!(answer.status == 200 && answer.headers["content-type"].to_str().unwrap().starts_with(kind), "{file}");
    }
    assert_eq!(server.get("/page/..%2Findex.html").await.code(), "not_found");
    let document = server.get("/openapi.json").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, method) in [
        ("/embed", "post"),
        ("/classify", "post"),
        ("/search", "post"),
        ("/items", "post"),
        ("/items", "get"),
        ("/items/{id}", "put"),
        ("/items/{id}", "get"),
        ("/items/{id}", "delete"),
        ("/items/{id}/image", "get"),
        ("/duplicates", "get"),
        ("/map", "get"),
        ("/labels", "get"),
        ("/labels", "post"),
        ("/probe", "get"),
        ("/probe", "post"),
        ("/v1/embeddings", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{model}", "get"),
        ("/info", "get"),
        ("/health", "get"),
        ("/ready", "get"),
        ("/metrics", "get"),
    ] {
        assert!(document["paths"][path][method].is_object(), "{method} {path} is not described");
    }
}
