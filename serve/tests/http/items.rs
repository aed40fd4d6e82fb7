//! `/items` and `/search`.

use serde_json::{Value, json};

use crate::support::*;

fn ids(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    json["hits"].as_array().unwrap().iter().map(|h| h["id"].as_str().unwrap().to_string()).collect()
}

async fn filled() -> Server {
    let server = server();
    for seed in 0..6u32 {
        let body =
            json!({ "image": base64(&png(seed)), "metadata": { "label": if seed % 2 == 0 { "even" } else { "odd" } } });
        let answer = server.call("PUT", &format!("/items/p{seed}"), "application/json", body.to_string()).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    server
}

#[tokio::test]
async fn an_image_finds_itself_first() {
    let server = filled().await;
    let answer = server.post_image("/search?k=3", png(4)).await;
    assert_eq!(answer.status, 200);
    let hits = answer.json()["hits"].as_array().unwrap().clone();
    assert_eq!(hits.len(), 3);
    assert_eq!((hits[0]["id"].as_str(), &hits[0]["metadata"]), (Some("p4"), &json!({ "label": "even" })));
    assert!((hits[0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    let scores: Vec<f64> = hits.iter().map(|h| h["score"].as_f64().unwrap()).collect();
    assert!(scores.windows(2).all(|w| w[0] >= w[1]));
    // More than there are, and the default of ten: all.
    assert_eq!(ids(&server.post_image("/search?k=1000", png(4)).await).len(), 6);
    assert_eq!(ids(&server.post_image("/search", png(4)).await).len(), 6);
}

#[tokio::test]
async fn vector_image_and_form_searches_agree_and_an_id_leaves_itself_out() {
    let server = filled().await;
    let expected = ids(&server.post_image("/search", png(2)).await);
    let item = server.get("/items/p2?vector=true").await.json();
    let (form_type, form_body) = form(&[("image", Some("x.png"), &png(2)), ("k", None, b"10")]);
    for answer in [
        server.post_json("/search", json!({ "image": base64(&png(2)) })).await,
        server.post_json("/search", json!({ "vector": item["vector"], "exact": true })).await,
        server.call("POST", "/search", &form_type, form_body).await,
    ] {
        assert_eq!(ids(&answer), expected);
    }
    assert_eq!(ids(&server.post_json("/search", json!({ "id": "p2" })).await), expected[1..]);
}

#[tokio::test]
async fn a_filter_keeps_what_matches() {
    let server = filled().await;
    let body = json!({ "image": base64(&png(0)), "filter": { "label": "odd" } });
    let answer = server.post_json("/search?k=10", body).await;
    let mut found = ids(&answer);
    found.sort();
    assert_eq!(found, ["p1", "p3", "p5"]);
    let none = json!({ "image": base64(&png(0)), "filter": { "label": "odd", "more": 1 } });
    assert!(ids(&server.post_json("/search", none).await).is_empty());
}

#[tokio::test]
async fn items_are_created_replaced_read_and_deleted() {
    let server = server();
    let put = |body: Value| server.call("PUT", "/items/a%2Fb", "application/json", body.to_string());
    assert_eq!(put(json!({ "vector": [2, 0, 0, 0, 0, 0, 0, 0] })).await.status, 201);
    assert_eq!(put(json!({ "vector": [0, 3, 0, 0, 0, 0, 0, 0], "metadata": { "n": 1 } })).await.status, 200);
    let item = server.get("/items/a%2Fb?vector=true").await.json();
    assert_eq!(
        item,
        json!({ "id": "a/b", "metadata": { "n": 1 }, "image": false, "vector": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] })
    );
    assert_eq!(server.get("/items/a%2Fb/image").await.status, 404);
    assert_eq!(server.call("DELETE", "/items/a%2Fb", "", "").await.status, 200);
    assert_eq!(server.call("DELETE", "/items/a%2Fb", "", "").await.code(), "not_found");
    assert_eq!(server.get("/items/a%2Fb").await.status, 404);
}

#[tokio::test]
async fn an_image_item_keeps_a_thumbnail_and_its_metadata() {
    let server = server();
    let wide = encode(image::RgbImage::from_pixel(400, 100, image::Rgb([9, 8, 7])), image::ImageFormat::Png);
    let answer = server.call("PUT", "/items/wide?metadata=%7B%22a%22%3A1%7D", "image/png", wide).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let (form_type, form_body) = form(&[("image", Some("x"), &png(3)), ("metadata", None, b"{\"a\": 2}")]);
    assert_eq!(server.call("PUT", "/items/form", &form_type, form_body).await.status, 201);
    assert_eq!(server.get("/items/wide").await.json()["metadata"], json!({ "a": 1 }));
    assert_eq!(server.get("/items/form").await.json()["metadata"], json!({ "a": 2 }));
    let picture = server.get("/items/wide/image").await;
    assert_eq!(picture.headers["content-type"], "image/jpeg");
    let picture = image::load_from_memory(&picture.body).unwrap().to_rgb8();
    let near = |pixel: &image::Rgb<u8>| pixel.0.iter().zip([9, 8, 7]).all(|(found, given)| found.abs_diff(given) <= 3);
    assert!(picture.dimensions() == (256, 64) && near(picture.get_pixel(50, 10)), "{:?}", picture.get_pixel(50, 10));
    // A small image is kept at its size.
    let small = server.get("/items/form/image").await;
    assert_eq!(small.headers["content-type"], "image/png");
    assert_eq!(image::load_from_memory(&small.body).unwrap().to_rgb8(), pattern(3));
}

#[tokio::test]
async fn a_batch_has_a_result_for_each_item() {
    let server = server();
    let body = json!({ "items": [
        { "id": "good", "image": base64(&png(0)), "metadata": { "x": 1 } },
        { "id": "broken", "image": base64(b"nothing") },
        { "id": "short", "vector": [1, 2] },
        { "image": base64(&png(1)) },
        { "id": "vector", "vector": [1, 1, 1, 1, 1, 1, 1, 1] },
        { "id": "last", "image": base64(&png(2)) },
    ] });
    let answer = server.post_json("/items", body).await;
    assert_eq!(answer.status, 200);
    let results = answer.json()["results"].as_array().unwrap().clone();
    let word = |r: &Value| r["status"].as_str().or(r["error"]["code"].as_str()).unwrap().to_string();
    let words: Vec<String> = results.iter().map(word).collect();
    assert_eq!(words, ["created", "image_undecodable", "dimension_mismatch", "malformed", "created", "created"]);
    assert_eq!(results[1]["error"]["index"], 1);
    // Each item has the feature of its own image.
    assert_eq!(ids(&server.post_image("/search?k=1", png(2)).await), ["last"]);
    let (form_type, form_body) = form(&[
        ("image", Some("one.png"), &png(5)),
        ("image", Some("good"), &png(6)),
        ("metadata", None, b"{\"one.png\": {\"y\": 2}}"),
    ]);
    let results = server.call("POST", "/items", &form_type, form_body).await.json()["results"].clone();
    assert_eq!((word(&results[0]), word(&results[1])), ("created".into(), "updated".into()));
    assert_eq!(server.get("/items/one.png").await.json()["metadata"], json!({ "y": 2 }));
}

/// A form whose parts have headers of their own.
fn parts(parts: &[(&str, &[u8])]) -> (&'static str, Vec<u8>) {
    let part = |(head, content): &(&str, &[u8])| [b"--XX\r\n", head.as_bytes(), b"\r\n\r\n", content, b"\r\n"].concat();
    (
        "multipart/form-data; boundary=XX",
        [parts.iter().map(part).collect::<Vec<_>>().concat(), b"--XX--\r\n".to_vec()].concat(),
    )
}

#[tokio::test]
async fn forms_of_common_clients_are_parsed() {
    let server = server();
    let (kind, body) = parts(&[
        // curl -F 'metadata=@m.json;type=application/json' -F images=@...
        (
            "Content-Disposition: form-data; name=\"metadata\"; filename=\"m.json\"\r\nContent-Type: application/json",
            r#"{"Größe.png": {"from": "net"}, "plain.png": {"from": "curl"}}"#.as_bytes(),
        ),
        // .NET's MultipartFormDataContent
        (
            "Content-Disposition: form-data; name=images; filename=\"=?utf-8?B?R3LDtsOfZS5wbmc=?=\"; filename*=utf-8''Gr%C3%B6%C3%9Fe.png\r\nContent-Type: image/png",
            &png(0),
        ),
        ("Content-Disposition: form-data; name=\"images\"; filename=\"plain.png\"", &png(1)),
        ("Content-Disposition: form-data; name=\"images\"; filename=\"=?UTF-8?Q?B=C3=A4r.png?=\"", &png(2)),
    ]);
    let results = server.call("POST", "/items", kind, body).await.json()["results"].clone();
    let ids: Vec<&str> = results.as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["Größe.png", "plain.png", "Bär.png"]);
    assert_eq!(server.get("/items/Gr%C3%B6%C3%9Fe.png").await.json()["metadata"], json!({ "from": "net" }));
    assert_eq!(server.get("/items/plain.png").await.json()["metadata"], json!({ "from": "curl" }));
    // One item, its metadata in a file whose field has another name, or another type.
    for head in [
        "Content-Disposition: form-data; name=\"about\"; filename=\"m.json\"\r\nContent-Type: application/json; charset=utf-8",
        "Content-Disposition: form-data; name=\"metadata\"; filename=\"m.json\"\r\nContent-Type: application/octet-stream",
    ] {
        let image = "Content-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\nContent-Type: image/png";
        let (kind, body) = parts(&[(head, br#"{"x": 1}"#), (image, &png(3))]);
        assert!(server.call("PUT", "/items/one", kind, body).await.status.is_success());
        assert_eq!(server.get("/items/one").await.json()["metadata"], json!({ "x": 1 }));
        server.call("DELETE", "/items/one", "", "").await;
    }
    let (kind, body) = parts(&[
        ("Content-Disposition: form-data; name=\"image\"; filename=\"a.png\"", &png(0)),
        (
            "Content-Disposition: form-data; name=\"filter\"; filename=\"f.json\"\r\nContent-Type: application/json",
            br#"{"from": "curl"}"#,
        ),
    ]);
    let answer = server.call("POST", "/search", kind, body).await;
    assert_eq!(self::ids(&answer), ["plain.png"]);
}

#[tokio::test]
async fn pages_list_all_items() {
    let server = filled().await;
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let page = server.get(&format!("/items?limit=4&cursor={cursor}")).await.json();
        assert_eq!(page["total"], 6);
        seen.extend(page["items"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_string()));
        match page["next"].as_str() {
            Some(next) => cursor = next.to_string(),
            None => break,
        }
    }
    assert_eq!(seen, ["p0", "p1", "p2", "p3", "p4", "p5"]);
}
