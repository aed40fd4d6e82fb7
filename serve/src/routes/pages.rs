//! The pages for a browser, `/` and `/docs`, and the scripts and styles that they load.

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse, Response};

use crate::error::{ApiError, Failure};

/// A page runs and applies only what this server sends under its own address, and talks to this server only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The files that the pages load, by name.
macro_rules! files {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("../pages/", $name)))),+] };
}

static FILES: &[(&str, &str)] = &files![
    "api.js",
    "docs-examples.js",
    "docs.css",
    "docs.js",
    "dom.js",
    "fields.js",
    "filters.js",
    "labels.js",
    "legend.js",
    "lightbox.js",
    "map-draw.js",
    "map-view.js",
    "map.js",
    "pictures.js",
    "query.js",
    "results.js",
    "search.css",
    "search.js",
    "uploads.js",
];

/// `GET /`: search by image.
pub(super) async fn search() -> Response {
    page(include_str!("../pages/index.html"))
}

/// `GET /docs`: the routes, with examples.
pub(super) async fn docs() -> Response {
    page(include_str!("../pages/docs.html"))
}

fn page(html: &'static str) -> Response {
    ([(CONTENT_SECURITY_POLICY, POLICY)], Html(html)).into_response()
}

/// `GET /page/{file}`: a script or a style of the pages.
pub(super) async fn file(Path(name): Path<String>) -> Result<Response, Failure> {
    let found = FILES.iter().find(|(known, _)| *known == name);
    let (name, text) = found.ok_or_else(|| ApiError::NotFound("the pages have no such file".into()))?;
    // Browsers run a module only if its type is right.
    let kind = if name.ends_with(".js") { "text/javascript; charset=utf-8" } else { "text/css; charset=utf-8" };
    // After an update of the server, a page must not run with scripts of the version before.
    Ok(([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], *text).into_response())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_pages_is_served_and_every_one_that_is_loaded_exists() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pages");
        let names = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut scripts: Vec<String> = names.filter(|n| n.ends_with(".js") || n.ends_with(".css")).collect();
        scripts.sort();
        let mut served: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        served.sort();
        assert_eq!(served, scripts);
        let loaded = |text: &str, before: &str| {
            text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap().to_string()).collect::<Vec<_>>()
        };
        for (name, text) in FILES.iter().filter(|(name, _)| name.ends_with(".js")) {
            let imported = loaded(text, " from \"./");
            assert!(imported.iter().all(|file| served.contains(&file.as_str())), "{name}: {imported:?}");
        }
        for html in [include_str!("../pages/index.html"), include_str!("../pages/docs.html")] {
            let named = [loaded(html, "src=\"page/"), loaded(html, "href=\"page/")].concat();
            assert!(named.len() >= 2 && named.iter().all(|file| served.contains(&file.as_str())), "{named:?}");
            // The policy allows neither scripts nor styles in the page itself.
            assert!(!html.contains("<script>") && !html.contains("<style") && !html.contains(" style="));
        }
    }
}
