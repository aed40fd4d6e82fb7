//! Filters, `/duplicates`, `/map`, and an index in a folder behind the routes.

use macrl_serve::index::Location;
use macrl_serve::state::Settings;
use serde_json::{Value, json};

use crate::support::*;

/// Items at angles in a plane; `even` numbers are cats.
async fn circle() -> Server {
    let server = server();
    let items: Vec<Value> = (0..12)
        .map(|i| {
            let angle = f64::from(i) * 0.05;
            let label = if i % 2 == 0 { "cat" } else { "dog" };
            let vector = [angle.cos(), angle.sin(), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
            json!({ "id": format!("i{i:02}"), "vector": vector, "metadata": { "label": label, "year": 2000 + i } })
        })
        .collect();
    assert_eq!(server.post_json("/items", json!({ "items": items })).await.status, 200);
    server
}

fn ids(list: &Value) -> String {
    list.as_array().unwrap().iter().map(|h| h["id"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
}

fn encoded(filter: &Value) -> String {
    filter.to_string().bytes().map(|b| format!("%{b:02x}")).collect()
}

#[tokio::test]
async fn filters_are_the_same_in_json_in_a_form_and_in_the_query() {
    let server = circle().await;
    let filter = json!({ "label": { "in": ["cat", "cow"] }, "year": { "gte": 2003, "lt": 2008 } });
    let body = json!({ "vector": [1, 0, 0, 0, 0, 0, 0, 0], "filter": filter });
    let answer = server.post_json("/search", body).await.json();
    assert_eq!(ids(&answer["hits"]), "i04 i06");
    let text = filter.to_string();
    let (form_type, form_body) = form(&[("image", Some("x"), &png(0)), ("filter", None, text.as_bytes())]);
    let answer = server.call("POST", "/search", &form_type, form_body).await.json();
    assert_eq!(answer["hits"].as_array().unwrap().len(), 2);
    let page = server.get(&format!("/items?limit=1&filter={}", encoded(&filter))).await.json();
    assert_eq!((ids(&page["items"]).as_str(), &page["total"], &page["next"]), ("i04", &json!(2), &json!("i04")));
    assert!(page["items"][0]["vector"].is_null());
    let page = server.get(&format!("/items?vectors=true&cursor=i04&filter={}", encoded(&filter))).await.json();
    assert_eq!((ids(&page["items"]).as_str(), &page["next"]), ("i06", &Value::Null));
    assert_eq!(page["items"][0]["vector"].as_array().unwrap().len(), DIM);
}

#[tokio::test]
async fn mistakes_in_filters_and_bounds_are_400() {
    let server = circle().await;
    for filter in [json!({ "year": { "around": 1 } }), json!({ "year": { "gt": "2000" } }), json!({ "year": {} })] {
        let body = json!({ "vector": [1, 0, 0, 0, 0, 0, 0, 0], "filter": filter });
        assert_eq!(server.post_json("/search", body).await.code(), "malformed", "{filter}");
        let path = format!("/items?filter={}", encoded(&filter));
        assert_eq!(server.get(&path).await.code(), "malformed", "{filter}");
    }
    for path in [
        "/items?filter=cat",
        "/items?filter=%5B1%5D",
        "/items?vectors=perhaps",
        "/duplicates?threshold=2",
        "/duplicates?threshold=NaN",
        "/duplicates?limit=0",
        "/duplicates?limit=1001",
        "/duplicates?filter=%7B",
        "/map?points=0",
        "/map?points=100001",
        "/map?points=many",
    ] {
        assert_eq!(server.get(path).await.code(), "malformed", "{path}");
    }
}

#[tokio::test]
async fn near_duplicates_are_listed_page_by_page() {
    let server = circle().await;
    // 0.05 apart: cos 0.99875; 0.1 apart: cos 0.995.
    let all = server.get("/duplicates?threshold=0.998").await.json();
    let groups = all["groups"].as_array().unwrap();
    assert_eq!((groups.len(), &all["next"]), (11, &Value::Null));
    assert_eq!(ids(&groups[3]["duplicates"]), "i04");
    assert!((groups[0]["duplicates"][0]["score"].as_f64().unwrap() - 0.05f64.cos()).abs() < 1e-6);
    let cats = encoded(&json!({ "label": "cat" }));
    let first = server.get(&format!("/duplicates?threshold=0.99&limit=2&filter={cats}")).await.json();
    assert_eq!((ids(&first["groups"]).as_str(), &first["next"]), ("i00 i02", &json!("i02")));
    assert_eq!(ids(&first["groups"][1]["duplicates"]), "i04");
    let rest = server.get(&format!("/duplicates?threshold=0.99&cursor=i02&filter={cats}")).await.json();
    assert_eq!(ids(&rest["groups"]), "i04 i06 i08");
    // The default threshold.
    assert_eq!(ids(&server.get("/duplicates?limit=1").await.json()["groups"]), "i00");
}

#[tokio::test]
async fn the_map_shows_items_in_their_order() {
    let server = circle().await;
    let map = server.get("/map").await.json();
    let points = map["points"].as_array().unwrap();
    assert_eq!((points.len(), &map["total"]), (12, &json!(12)));
    // An arc: one end to the other, all on one side.
    let x: Vec<f64> = points.iter().map(|p| p["x"].as_f64().unwrap()).collect();
    assert!(x.windows(2).all(|w| w[0] < w[1]) || x.windows(2).all(|w| w[0] > w[1]), "{x:?}");
    assert!((x[0].abs() - 1.0).abs() < 1e-3 && points[3]["metadata"]["label"] == "dog");
    assert!(map["explained"][0].as_f64().unwrap() > 0.9);
    // The vector that a search was made with has its item's place.
    let found = server.post_json("/search?vector=true&k=1", json!({ "id": "i03" })).await.json();
    let numbers = |list: &Value| list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    let vector = numbers(&found["vector"]);
    for (i, axis) in ["x", "y"].into_iter().enumerate() {
        let along: f64 = numbers(&map["plane"][axis]).iter().zip(&vector).map(|(a, v)| a * v).sum();
        let (found, given) = (along + numbers(&map["plane"]["offset"])[i], points[3][axis].as_f64().unwrap());
        assert!((found - given).abs() < 1e-3, "{axis}: {found}, not {given}");
    }
    assert!(server.get("/map?points=5").await.json()["points"].as_array().unwrap().len() <= 10);
    let empty = crate::support::server().get("/map").await.json();
    assert_eq!((&empty["points"], &empty["total"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn a_full_index_refuses_items_that_do_not_fit_and_stores_the_others() {
    let server = server_with(Settings {
        limits: macrl_serve::limits::Limits { index_bytes: 2000, ..settings().limits },
        ..settings()
    });
    let item =
        |id: &str, text: &str| json!({ "id": id, "vector": [1, 0, 0, 0, 0, 0, 0, 0], "metadata": { "t": text } });
    let long = "x".repeat(900);
    let body = json!({ "items": [item("a", ""), item("b", &long), item("c", ""), item("a", "y")] });
    let answer = server.post_json("/items", body).await;
    assert_eq!(answer.status, 200);
    let word = |r: &Value| r["status"].as_str().or(r["error"]["code"].as_str()).unwrap().to_string();
    let words: Vec<String> = answer.json()["results"].as_array().unwrap().iter().map(word).collect();
    assert_eq!(words, ["created", "index_full", "created", "updated"]);
    assert_eq!(answer.json()["results"][1]["error"]["index"], 1);
}

#[tokio::test]
async fn items_in_a_folder_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let settings = || Settings { index: Location::Folder(folder.path().join("index")), ..settings() };
    let server = server_with(settings());
    assert_eq!(server.get("/info").await.json()["index"]["kind"], "folder");
    for seed in 0..3 {
        assert_eq!(server.call("PUT", &format!("/items/p{seed}"), "image/png", png(seed)).await.status, 201);
    }
    assert_eq!(server.call("DELETE", "/items/p1", "", "").await.status, 200);
    let picture = server.get("/items/p2/image").await.body;
    drop(server);
    let server = server_with(settings());
    let found = server.post_image("/search", png(2)).await.json();
    assert_eq!(ids(&found["hits"]), "p2 p0");
    assert_eq!(server.get("/items/p2/image").await.body, picture);
    assert_eq!(server.get("/items/p1").await.status, 404);
    // An index of another encoder is refused at start.
    drop(server);
    let other = tempfile::tempdir().unwrap();
    write_bundle(other.path(), "other", true);
    let bundle = macrl_bundle::bundle::Bundle::open(other.path()).unwrap();
    let refused = macrl_serve::state::App::new(&bundle, settings()).err().unwrap().to_string();
    assert!(refused.starts_with("the index holds 2 items of encoder tiny"), "{refused}");
}
