//! The suite's cases of near-duplicate items.

use macrl_serve::index::duplicates::{DuplicateQuery, Group, MAX_PER_PAGE, duplicates};
use macrl_serve::index::{Filter, Index, Item};
use serde_json::json;

use crate::backends::*;
use crate::cases::recall;

pub(crate) async fn near_duplicates_are_reported_once(backend: &dyn Backend) {
    let index = backend.open(&encoder(8)).await.unwrap();
    let mut items = crowd(300, 8, 5);
    for (copy, of) in [("x1", 3), ("x2", 3), ("x3", 200)] {
        let mut vector = items[of].vector.clone();
        vector[0] += 1e-4;
        items.push(item(copy, &vector, json!({ "rare": false })));
    }
    fill(index.as_ref(), items).await;
    let all = DuplicateQuery { threshold: 0.99999, cursor: None, limit: 2, filter: Filter::default(), exact: false };
    let named = |groups: Vec<Group>| groups.iter().map(named).collect::<Vec<_>>();
    let (groups, next) = duplicates(index.as_ref(), &all).await.unwrap();
    assert_eq!(named(groups), ["200: x3", "3: x1 x2"]);
    // The pair of the two copies is in the group of the third item.
    let (groups, next) = duplicates(index.as_ref(), &DuplicateQuery { cursor: next, ..all.clone() }).await.unwrap();
    assert_eq!((named(groups), next), (Vec::new(), None));
    let none = DuplicateQuery { filter: filter(json!({ "rare": true })), ..all };
    assert_eq!(duplicates(index.as_ref(), &none).await.unwrap(), (Vec::new(), None));
}

fn named(group: &Group) -> String {
    format!("{}: {}", group.id, ids(&group.duplicates).join(" "))
}

/// The groups of all pages, in order.
async fn all_duplicates(index: &dyn Index, mut query: DuplicateQuery) -> Vec<Group> {
    let mut all = Vec::new();
    loop {
        let (groups, next) = duplicates(index, &query).await.unwrap();
        assert!(groups.len() <= query.limit);
        all.extend(groups);
        if next.is_none() {
            return all;
        }
        assert_ne!(query.cursor, next);
        query.cursor = next;
    }
}

pub(crate) async fn groups_of_duplicates_are_complete(backend: &dyn Backend) {
    let index = backend.open(&encoder(8)).await.unwrap();
    let mut items = crowd(200, 8, 15);
    // Copies of one item, near-copies of another (all different), and a chain whose ends are far apart.
    let (copied, varied) = (items[20].vector.clone(), items[30].vector.clone());
    let mut noise = Noise(16);
    items.extend((0..400).map(|i| item(&format!("copy {i:03}"), &copied, json!({}))));
    items.extend((0..150).map(|i| {
        let moved: Vec<f32> = varied.iter().zip(noise.vector(8)).map(|(v, n)| v + 1e-4 * n).collect();
        item(&format!("varied {i:03}"), &moved, json!({}))
    }));
    let chain = |i: usize| [(i as f32 * 0.01).cos(), (i as f32 * 0.01).sin(), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    items.extend((0..4).map(|i| item(&format!("z{i}"), &chain(i), json!({}))));
    fill(index.as_ref(), items).await;
    // cos 0.01 = 0.99995, cos 0.02 = 0.9998.
    let query = DuplicateQuery { threshold: 0.9999, cursor: None, limit: 3, filter: Filter::default(), exact: false };
    let groups = all_duplicates(index.as_ref(), query.clone()).await;
    let heads: Vec<(&str, usize)> = groups.iter().map(|g| (g.id.as_str(), g.duplicates.len())).collect();
    assert_eq!(heads, [("20", 400), ("30", 150), ("z0", 1), ("z1", 1), ("z2", 1)]);
    assert!(groups.iter().all(|group| group.count == group.duplicates.len()));
    let mut copies = ids(&groups[0].duplicates);
    copies.sort_unstable();
    assert!(copies.iter().enumerate().all(|(i, id)| *id == format!("copy {i:03}")));
    // With a threshold of 1, only copies are found.
    let groups = all_duplicates(index.as_ref(), DuplicateQuery { threshold: 1.0, ..query }).await;
    let copied = groups.iter().find(|group| group.id == "20").unwrap();
    assert_eq!((copied.count, copied.duplicates.len()), (400, 400));
}

pub(crate) async fn a_long_group_continues_on_the_next_page(backend: &dyn Backend) {
    let index = backend.open(&encoder(4)).await.unwrap();
    let mut items: Vec<Item> =
        (0..MAX_PER_PAGE + 501).map(|i| item(&format!("c{i:04}"), &[1.0, 0.0, 0.0, 0.0], json!({}))).collect();
    items.extend(["d0", "d1"].map(|id| item(id, &[0.0, 1.0, 0.0, 0.0], json!({}))));
    fill(index.as_ref(), items).await;
    let all = DuplicateQuery { threshold: 0.99, cursor: None, limit: 10, filter: Filter::default(), exact: false };
    let (first, next) = duplicates(index.as_ref(), &all).await.unwrap();
    assert_eq!((first.len(), first[0].duplicates.len(), first[0].count), (1, MAX_PER_PAGE, MAX_PER_PAGE + 500));
    let rest = all_duplicates(index.as_ref(), DuplicateQuery { cursor: next, ..all }).await;
    let sizes: Vec<_> = rest.iter().map(|g| (g.id.as_str(), g.duplicates.len(), g.count)).collect();
    assert_eq!(sizes, [("c0000", 500, MAX_PER_PAGE + 500), ("d0", 1, 1)]);
    let mut seen: Vec<&str> = first.iter().chain(&rest[..1]).flat_map(|g| ids(&g.duplicates)).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), MAX_PER_PAGE + 500);
}

pub(crate) async fn copies_do_not_hide_other_items_from_approximate_searches(backend: &dyn Backend) {
    let index = backend.open(&encoder(16)).await.unwrap();
    let others = crowd(1200, 16, 17);
    let mut items = others.clone();
    // Copies of two items; some differ in their last bits, as vectors from two batches do.
    for (name, of) in [("a", 40), ("b", 41)] {
        items.extend((0..600).map(|i| {
            let mut vector = others[of].vector.clone();
            vector[i % 16] = f32::from_bits(vector[i % 16].to_bits() ^ u32::from(i % 3 == 0));
            Item { vector, ..item(&format!("{name}{i}"), &others[of].vector, json!({})) }
        }));
    }
    fill(index.as_ref(), items).await;
    settled(index.as_ref()).await;
    for (i, other) in others.iter().enumerate() {
        let hits = search(index.as_ref(), query(&other.vector, 1)).await;
        assert!(hits[0].id == i.to_string() || hits[0].score > 0.999_999, "{i}: {hits:?}");
    }
    // Items near the copies are found, too.
    let found = recall(index.as_ref(), &clouds(40, 16, 17), json!({ "rare": false })).await;
    assert!(found >= 0.98, "recall {found}");
    // One of a thousand copies can be deleted alone.
    remove(index.as_ref(), (0..599).map(|i| format!("a{i}"))).await;
    let hits = search(index.as_ref(), query(&others[40].vector, 3)).await;
    let mut near = ids(&hits)[..2].to_vec();
    near.sort_unstable();
    assert_eq!(near, ["40", "a599"]);
}
