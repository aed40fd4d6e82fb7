//! `/labels`, `/probe` and `/classify?probe=labels`.

use macrl_serve::index::Location;
use macrl_serve::state::Settings;
use serde_json::{Value, json};

use crate::support::*;

/// Items at angles in a plane: those below 0.6 and those above are two groups.
async fn fill(server: &Server) {
    let items: Vec<Value> = (0..24)
        .map(|i| {
            let angle = f64::from(i) * 0.05;
            json!({ "id": format!("i{i:02}"), "vector": [angle.cos(), angle.sin(), 0, 0, 0, 0, 0, 0] })
        })
        .collect();
    assert_eq!(server.post_json("/items", json!({ "items": items })).await.status, 200);
}

fn labels(list: &[(&str, Option<&str>)]) -> Value {
    let list: Vec<Value> = list.iter().map(|(id, label)| json!({ "id": id, "label": label })).collect();
    json!({ "labels": list })
}

const SOME: &[(&str, Option<&str>)] =
    &[("i00", Some("low")), ("i03", Some("low")), ("i20", Some("high, \"far\"")), ("i23", Some("high, \"far\""))];

#[tokio::test]
async fn a_classifier_is_trained_from_labels_and_says_how_good_it_is() {
    let server = server();
    fill(&server).await;
    let early = server.post_json("/probe", json!({})).await;
    assert_eq!((early.status.as_u16(), early.code().as_str()), (409, "conflict"));
    let changed = server.post_json("/labels", labels(SOME)).await.json();
    assert_eq!((&changed["version"], &changed["previous"][3]), (&json!(1), &json!({ "id": "i23", "label": null })));
    let probe = server.post_json("/probe", json!({ "uncertain": 3, "classify": ["i01", "i22", "gone"] })).await.json();
    assert_eq!((&probe["version"], &probe["labelled"], &probe["looked_at"]), (&json!(1), &json!(4), &json!(20)));
    assert_eq!(probe["held_out"], json!({ "accuracy": 1.0, "judged": 4 }));
    assert_eq!(probe["classes"][1], json!({ "label": "low", "labelled": 2 }));
    let classified: Vec<&str> =
        probe["classified"].as_array().unwrap().iter().map(|g| g["label"].as_str().unwrap()).collect();
    assert_eq!(classified, ["high, \"far\"", "low"].iter().rev().copied().collect::<Vec<_>>());
    // The least certain ones lie between the groups.
    for guess in probe["uncertain"].as_array().unwrap() {
        assert!(("i08".."i16").contains(&guess["id"].as_str().unwrap()), "{guess}");
    }
    // The same version is not trained again; the next one is, and the history has both.
    assert_eq!(server.get("/probe").await.json()["history"].as_array().unwrap().len(), 1);
    server.post_json("/labels", labels(&[("i05", Some("low"))])).await;
    let next = server.get("/probe").await.json();
    assert_eq!((&next["version"], next["history"].as_array().unwrap().len()), (&json!(2), 2));
    // Images can be classified by it.
    assert_eq!(server.call("PUT", "/items/picture", "image/png", png(0)).await.status, 201);
    let answer = server.post_image("/classify?probe=labels&top_k=1", png(0)).await.json();
    let by_item = server.post_json("/probe", json!({ "classify": ["picture"] })).await.json()["classified"][0].clone();
    assert_eq!(answer["predictions"][0][0]["label"], by_item["label"]);
    assert_eq!(server.post_image("/classify?probe=other", png(0)).await.code(), "malformed");
}

#[tokio::test]
async fn labels_are_durable_and_a_change_can_be_undone() {
    let folder = tempfile::tempdir().unwrap();
    let settings = || Settings { index: Location::Folder(folder.path().join("index")), ..settings() };
    let server = server_with(settings());
    fill(&server).await;
    server.post_json("/labels", labels(SOME)).await;
    let changed =
        server.post_json("/labels", labels(&[("i00", Some("other")), ("i03", None), ("i05", Some("low"))])).await;
    drop(server);
    let server = server_with(settings());
    let list = server.get("/labels").await.json();
    let given: Vec<&str> = list["labels"].as_array().unwrap().iter().map(|l| l["id"].as_str().unwrap()).collect();
    assert_eq!((&list["version"], given), (&json!(2), vec!["i00", "i05", "i20", "i23"]));
    let undone = server.post_json("/labels", json!({ "labels": changed.json()["previous"] })).await;
    assert_eq!((undone.status.as_u16(), &undone.json()["version"]), (200, &json!(3)));
    let csv = server.get("/labels?format=csv").await;
    assert!(csv.headers["content-type"].to_str().unwrap().starts_with("text/csv"));
    let far = "\"high, \"\"far\"\"\"";
    let expected =
        format!("id,label,source,score\ni00,low,given,\ni03,low,given,\ni20,{far},given,\ni23,{far},given,\n");
    assert_eq!(String::from_utf8(csv.body).unwrap(), expected);
    let list = server.get("/labels?guesses=true").await.json();
    assert_eq!((list["labels"].as_array().unwrap().len(), list["guesses"].as_array().unwrap().len()), (4, 20));
    let guesses = String::from_utf8(server.get("/labels?format=csv&guesses=true").await.body).unwrap();
    assert!(
        guesses.starts_with(&expected) && guesses.lines().count() == 25 && guesses.contains("\ni01,low,guessed,0.")
    );
}

#[tokio::test]
async fn mistakes_in_labels_change_nothing() {
    let server = server();
    fill(&server).await;
    let long = "x".repeat(201);
    for (wrong, code) in [
        (labels(&[]), "malformed"),
        (labels(&[("i00", Some("a")), ("i99", Some("a"))]), "not_found"),
        (labels(&[("i00", Some(""))]), "malformed"),
        (labels(&[("i00", Some(" a"))]), "malformed"),
        (labels(&[("i00", Some("a\nb"))]), "malformed"),
        (labels(&[("i00", Some(&long))]), "malformed"),
        (json!({ "labels": [{ "id": "i00", "label": "a", "by": "me" }] }), "malformed"),
        (json!({ "labels": [{ "id": "", "label": "a" }] }), "malformed"),
    ] {
        assert_eq!(server.post_json("/labels", wrong.clone()).await.code(), code, "{wrong}");
    }
    assert_eq!(server.post_image("/labels", png(0)).await.code(), "unsupported_type");
    assert_eq!(server.post_json("/probe", json!({ "uncertain": 1001 })).await.code(), "malformed");
    assert_eq!(server.get("/labels?format=xml").await.code(), "malformed");
    assert_eq!(server.get("/labels").await.json(), json!({ "version": 0, "labels": [] }));
    // What is gone can lose its label, and no longer counts.
    server.post_json("/labels", labels(SOME)).await;
    server.call("DELETE", "/items/i23", "", "").await;
    assert_eq!(server.post_json("/probe", json!({})).await.json()["labelled"], 3);
    assert_eq!(server.post_json("/labels", labels(&[("i23", None)])).await.status, 200);
}

#[tokio::test]
async fn two_people_label_at_once_and_nothing_is_lost() {
    let server = server();
    fill(&server).await;
    let one = async |from: usize| {
        for i in 0..12 {
            let id = format!("i{:02}", from + i);
            assert_eq!(server.post_json("/labels", labels(&[(&id, Some("x"))])).await.status, 200);
        }
    };
    tokio::join!(one(0), one(12));
    let list = server.get("/labels").await.json();
    assert_eq!((&list["version"], list["labels"].as_array().unwrap().len()), (&json!(24), 24));
}
