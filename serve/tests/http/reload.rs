//! A bundle that changes under a running server.

use axum::body::Body;
use axum::http::Request;
use macrl_serve::state::Settings;

use crate::support::*;

#[tokio::test]
async fn a_valid_bundle_is_loaded_and_a_broken_one_is_not() {
    let server = server_with(Settings { api_key: Some("k".into()), ..settings() });
    let reload = || {
        let request = Request::post("/admin/reload").header("Authorization", "Bearer k").body(Body::empty()).unwrap();
        server.send(request)
    };
    let name = || server.state.model().unwrap().name().to_string();
    write_bundle(server.dir.path(), "second", true);
    assert_eq!(reload().await.json()["model"], "second");
    assert_eq!(name(), "second");

    std::fs::write(server.dir.path().join("onnx/model.onnx"), &TINY[..3000]).unwrap();
    let answer = reload().await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (409, "conflict"));
    std::fs::write(server.dir.path().join("config.json"), "{").unwrap();
    assert_eq!(reload().await.status, 409);
    assert_eq!(name(), "second");
    let embed = Request::post("/embed").header("Authorization", "Bearer k").header("Content-Type", "image/png");
    assert_eq!(server.send(embed.body(Body::from(png(0))).unwrap()).await.status, 200);
}

#[tokio::test]
async fn items_of_other_weights_keep_the_old_bundle() {
    let server = server();
    assert_eq!(server.call("PUT", "/items/a", "image/png", png(0)).await.status, 201);
    // The same weights can be loaded again.
    server.state.reload().await.unwrap();
    write_bundle(server.dir.path(), "other", true);
    let error = server.state.reload().await.unwrap_err().to_string();
    assert!(error.contains("the index holds 1 items of encoder tiny (8 numbers), found encoder other"), "{error}");
    assert_eq!(server.state.model().unwrap().name(), "tiny");
}

#[tokio::test]
async fn reloading_over_http_needs_a_key() {
    assert_eq!(server().call("POST", "/admin/reload", "", "").await.status, 404);
}
