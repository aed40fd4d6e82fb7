//! `ingest`: which files become which items.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use crate::process::*;
use crate::support::*;

/// A temporary folder with a bundle and, later, an index.
struct Work {
    bundle: tempfile::TempDir,
    dir: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        Self { bundle: bundle(), dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn ingest(&self, folder: &str, more: &[&str]) -> Output {
        let (bundle, index, folder) = (self.bundle.path().to_str().unwrap(), self.at("index"), self.at(folder));
        let fixed = ["ingest", "--bundle", bundle, "--index", index.to_str().unwrap(), folder.to_str().unwrap()];
        run(&[&fixed[..], more].concat())
    }

    /// (id, metadata) of all items, in the order of their ids.
    fn items(&self) -> Vec<(String, serde_json::Value)> {
        let index = self.at("index");
        let server = Process::start(self.bundle.path(), &["--index", index.to_str().unwrap()]);
        items_of(&server)
    }

    fn ids(&self) -> Vec<String> {
        self.items().into_iter().map(|(id, _)| id).collect()
    }
}

fn items_of(server: &Process) -> Vec<(String, serde_json::Value)> {
    let answer = server.ask(b"GET /items?limit=1000 HTTP/1.0\r\n\r\n");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let items = body["items"].as_array().unwrap();
    items.iter().map(|item| (item["id"].as_str().unwrap().to_string(), item["metadata"].clone())).collect()
}

/// The output of a command that ended with 0.
fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn ingest_fills_an_index_continues_and_lists_failures() {
    let work = Work::new();
    let write = |name: &str, bytes: &[u8]| work.write(Path::new("images").join(name), bytes);
    (0..40).for_each(|seed| write(&format!("{}/{seed}.png", if seed % 2 == 0 { "even" } else { "odd" }), &png(seed)));
    let ingest = || work.ingest("images", &[]);
    let output = said(&ingest());
    assert!(output.starts_with("40 of 40 images stored") && !output.contains("replaced"), "{output}");
    // New, changed, broken, and not an image at all.
    write("even/new.png", &png(50));
    write("odd/1.png", &png(51));
    write("broken.png", b"no image");
    write("notes.txt", b"nothing");
    let output = ingest();
    assert_eq!(output.status.code(), Some(1));
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), complaint(&output));
    assert!(said.starts_with("2 of 42 images stored") && said.contains("1 replaced an item, 39 were there"), "{said}");
    let expected = ["left out: 1 other file (notes.txt)", "broken.png: ", "error: 1 image was refused"];
    let lines: Vec<&str> = errors.lines().collect();
    assert!(lines.len() == 3 && lines.iter().zip(expected).all(|(line, e)| line.starts_with(e)), "{errors}");

    let index = work.at("index");
    let server = Process::start(work.bundle.path(), &["--index", index.to_str().unwrap()]);
    let get = |path: &str| server.ask(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
    let source = format!("\"source\":\"{}\"", work.at("images").display());
    assert!(get("/items/odd%2F1.png").contains(&format!("{{\"label\":\"odd\",\"file\":\"1.png\",{source}}}")));
    assert!(get("/items?limit=1").contains("\"total\":41"));
    // The server has the folder now.
    let refused = ingest();
    assert_eq!(refused.status.code(), Some(1));
    assert!(one_line(&refused).contains("is being written by another process"));
    // What is embedded in bulk is what is embedded one by one.
    let search =
        format!("POST /search?k=1 HTTP/1.0\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n", png(51).len());
    let answer = server.ask(&[search.as_bytes(), &png(51)].concat());
    assert!(answer.contains("\"id\":\"odd/1.png\"") && answer.contains("\"score\":"), "{answer}");
}

#[test]
fn files_of_two_folders_have_different_ids() {
    let work = Work::new();
    work.write("a/DSC_0001.png", &png(1));
    work.write("b/DSC_0001.png", &png(2));
    work.write("other/b/DSC_0001.png", &png(3));
    for folder in ["a", "b", "other/b"] {
        let said = said(&work.ingest(folder, &[]));
        assert!(said.starts_with("1 of 1 images stored") && !said.contains("replaced"), "{folder}: {said}");
    }
    let ids = ["DSC_0001.png", "b-2/DSC_0001.png", "b/DSC_0001.png"];
    assert_eq!(work.ids(), ids);
    // Each folder is recognised again, whatever was ingested in between.
    for folder in ["other/b", "a", "b"] {
        let said = said(&work.ingest(folder, &[]));
        assert!(said.starts_with("0 of 1 images stored") && said.contains("1 were there"), "{folder}: {said}");
    }
    assert_eq!(work.ids(), ids);
}

#[test]
fn an_item_of_another_source_is_not_replaced() {
    let work = Work::new();
    work.write("a/b/x.png", &png(1));
    work.write("c/y.png", &png(2));
    work.write("b/x.png", &png(3));
    said(&work.ingest("c", &[]));
    said(&work.ingest("b", &[]));
    // `b` has the prefix b; what the first folder gets later would have its ids.
    work.write("c/b/x.png", &png(4));
    let output = work.ingest("c", &[]);
    assert_eq!(output.status.code(), Some(1));
    let (complaint, b) = (complaint(&output), work.at("b"));
    let expected = format!("b/x.png: the index has an item of this id from {}; it was left as it is", b.display());
    assert!(complaint.starts_with(&expected), "{complaint}");
    let items = work.items();
    assert_eq!(items[0].0, "b/x.png");
    assert_eq!(items[0].1["source"], b.to_str().unwrap());
}

#[test]
fn a_subfolder_belongs_to_its_source_and_prune_removes_items_of_deleted_files() {
    let work = Work::new();
    (0..6).for_each(|i| work.write(format!("photos/2019/Rome trip/{i}.png"), &png(i)));
    (6..9).for_each(|i| work.write(format!("photos/2020/{i}.png"), &png(i)));
    said(&work.ingest("photos", &[]));
    // Renamed, gone, and gone from a folder that is not looked at.
    let at = |name: &str| work.at("photos").join(name);
    fs::rename(at("2019/Rome trip/0.png"), at("2019/Rome trip/new.png")).unwrap();
    fs::remove_file(at("2019/Rome trip/1.png")).unwrap();
    fs::remove_file(at("2020/8.png")).unwrap();
    let output = said(&work.ingest("photos/2019", &["--prune"]));
    assert!(output.starts_with("1 of 5 images stored") && output.contains("4 were there, 2 removed"), "{output}");
    let ids: Vec<String> = ["2.png", "3.png", "4.png", "5.png", "new.png"]
        .iter()
        .map(|file| format!("2019/Rome trip/{file}"))
        .chain((6..9).map(|i| format!("2020/{i}.png")))
        .collect();
    assert_eq!(work.ids(), ids);
    let items = work.items();
    assert!(items.iter().all(|(id, metadata)| metadata["label"] == id.split('/').next().unwrap()), "{items:?}");
    let output = said(&work.ingest("photos", &["--prune"]));
    assert!(output.contains("7 were there, 1 removed"), "{output}");
}

#[test]
fn nothing_is_pruned_if_a_folder_could_not_be_read() {
    let work = Work::new();
    work.write("photos/x.png", &png(1));
    work.write("photos/locked/y.png", &png(2));
    said(&work.ingest("photos", &[]));
    fs::remove_file(work.at("photos/x.png")).unwrap();
    work.write("photos/z.png", &png(3));
    // The folder is on a disk that is not mounted now.
    fs::rename(work.at("photos/locked"), work.at("away")).unwrap();
    symlink("nowhere", work.at("photos/locked")).unwrap();
    let output = work.ingest("photos", &["--prune"]);
    assert_eq!(output.status.code(), Some(1));
    let complaint = complaint(&output);
    assert!(complaint.contains("1 broken link (locked)") && complaint.contains("nothing was removed"), "{complaint}");
    assert_eq!(work.ids(), ["locked/y.png", "x.png", "z.png"]);
}

#[test]
fn labels_follow_the_rule_of_training_or_the_folder_or_nothing() {
    let work = Work::new();
    for (i, file) in ["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"].iter().enumerate() {
        work.write(Path::new("set").join(file), &png(i as u32));
    }
    said(&work.ingest("set", &[]));
    let labels: Vec<String> = work.items().iter().map(|(_, m)| m["label"].as_str().unwrap().to_string()).collect();
    assert_eq!(labels, ["cat", "dog", "cat", "dog"]);
    assert_eq!(work.items()[2].1["split"], "validation");

    let work = Work::new();
    work.write("photos/2019/Rome trip/x.png", &png(1));
    work.write("photos/2020/y.png", &png(2));
    said(&work.ingest("photos", &["--label-from", "parent"]));
    let labels: Vec<String> = work.items().iter().map(|(_, m)| m["label"].as_str().unwrap().to_string()).collect();
    assert_eq!(labels, ["Rome trip", "2020"]);
    assert_eq!(work.ingest("photos", &["--label-from", "moon"]).status.code(), Some(2));
}

#[test]
fn odd_names_and_links_are_read_once_and_omissions_are_reported() {
    let work = Work::new();
    let name = |bytes: &[u8]| Path::new("photos").join(std::ffi::OsStr::from_bytes(bytes));
    work.write(name(b"caf\xe9.png"), &png(1));
    work.write(name(b"caf\xe8.png"), &png(2));
    work.write(name(b"new\nline.png"), &png(3));
    work.write("photos/IMG_1.jxl", b"not read");
    symlink(".", work.at("photos/all")).unwrap();
    let output = work.ingest("photos", &[]);
    assert!(said(&output).starts_with("3 of 3 images stored"), "{}", said(&output));
    let complaint = complaint(&output);
    assert!(complaint.starts_with("left out: 1 JPEG XL file (not read: IMG_1.jxl), 1 link"), "{complaint}");
    assert_eq!(work.ids(), ["caf\\xE8.png", "caf\\xE9.png", "new\\nline.png"]);
}

#[test]
fn a_server_is_filled_by_the_same_rules_and_with_its_key() {
    let work = Work::new();
    (0..3).for_each(|i| work.write(format!("photos/odd/{i}.png"), &png(i)));
    work.write("more/odd/0.png", &png(7));
    let server = Process::start(work.bundle.path(), &["--api-key", "secret"]);
    let upload = |folder: &str, more: &[&str]| {
        let folder = work.at(folder);
        run(&[&["ingest", "--url", &server.url, folder.to_str().unwrap()], more].concat())
    };
    let output = upload("photos", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("401"), "{}", complaint(&output));
    let key = ["--api-key", "secret"];
    assert!(said(&upload("photos", &key)).starts_with("3 of 3 images stored"));
    assert!(said(&upload("more", &key)).starts_with("1 of 1 images stored"));
    fs::remove_file(work.at("photos/odd/1.png")).unwrap();
    let again = said(&upload("photos", &[&key[..], &["--prune"]].concat()));
    assert!(again.contains("2 replaced an item, 1 removed"), "{again}");
    let answer = server.ask(b"GET /items?limit=9 HTTP/1.0\r\nAuthorization: Bearer secret\r\n\r\n");
    for id in ["odd/0.png", "odd/2.png", "more/odd/0.png"] {
        assert!(answer.contains(&format!("\"id\":\"{id}\"")), "{id}: {answer}");
    }
    assert!(answer.contains("\"total\":3"), "{answer}");
}

#[test]
fn a_port_without_a_server_is_reported_at_once() {
    let work = Work::new();
    work.write("photos/x.png", &png(1));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (url, photos, since) = (format!("http://127.0.0.1:{port}"), work.at("photos"), Instant::now());
    let output = run(&["ingest", "--url", &url, photos.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("does not answer"), "{}", complaint(&output));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}
