//! Random operations on an index and on a plain model of one must agree, also over restarts and backups.

use std::collections::BTreeMap;
use std::sync::Arc;

use macrl_serve::index::{EmbeddedIndex, Index, Item, ListQuery, Query};
use serde_json::json;

use crate::backends::*;

const DIM: usize = 4;
/// Few ids, so that many operations replace or delete what is there.
const IDS: usize = 40;
const COLOURS: [&str; 3] = ["red", "green", "blue"];

/// A model of an index: its items by id, and what each operation should give.
#[derive(Default)]
struct Model(BTreeMap<String, Item>);

impl Model {
    fn colour(item: &Item) -> String {
        item.metadata.to_map()["colour"].as_str().unwrap().to_string()
    }

    /// Ids and scores of all items of a colour, the best first.
    fn scores(&self, vector: &[f32], colour: &str) -> Vec<(String, f32)> {
        let of_colour = self.0.values().filter(|item| Self::colour(item) == colour);
        let dot = |item: &Item| item.vector.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
        let mut scores: Vec<(String, f32)> = of_colour.map(|item| (item.id.clone(), dot(item))).collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        scores
    }
}

fn random_item(noise: &mut Noise) -> Item {
    let id = format!("item {}", noise.integer(IDS));
    let metadata = json!({ "colour": COLOURS[noise.integer(3)], "number": noise.integer(1000) });
    item(&id, &noise.vector(DIM), metadata)
}

async fn put(index: &dyn Index, model: &mut Model, noise: &mut Noise) {
    let items: Vec<Item> = (0..1 + noise.integer(4)).map(|_| random_item(noise)).collect();
    let expected: Vec<bool> =
        items.iter().map(|item| model.0.insert(item.id.clone(), item.clone()).is_none()).collect();
    let outcomes = index.put(&encoder(DIM), items).await.unwrap();
    assert_eq!(outcomes.into_iter().map(Result::unwrap).collect::<Vec<_>>(), expected);
}

async fn delete(index: &dyn Index, model: &mut Model, noise: &mut Noise) {
    let id = format!("item {}", noise.integer(IDS));
    assert_eq!(index.delete(&id).await.unwrap(), model.0.remove(&id).is_some(), "{id}");
}

async fn look_up(index: &dyn Index, model: &Model, noise: &mut Noise) {
    let (id, colour, limit) = (format!("item {}", noise.integer(IDS)), COLOURS[noise.integer(3)], 1 + noise.integer(7));
    assert_eq!(index.get(&id).await.unwrap().as_ref(), model.0.get(&id));
    let query = ListQuery {
        cursor: Some(id.clone()),
        limit,
        filter: filter(json!({ "colour": colour })),
        ..ListQuery::default()
    };
    let page = index.list(query).await.unwrap();
    let of_colour = || model.0.values().filter(|item| Model::colour(item) == colour);
    let after: Vec<&String> = of_colour().map(|item| &item.id).filter(|other| **other > id).collect();
    assert_eq!(page.items.iter().map(|item| &item.id).collect::<Vec<_>>(), after[..limit.min(after.len())]);
    assert_eq!((page.total, page.next.is_some()), (of_colour().count(), after.len() > limit));
}

async fn search_for(index: &dyn Index, model: &Model, noise: &mut Noise) {
    let (vector, colour, k) = (unit(&noise.vector(DIM)), COLOURS[noise.integer(3)], 1 + noise.integer(9));
    let expected = model.scores(&vector, colour);
    let asked = Query { filter: filter(json!({ "colour": colour })), exact: true, ..query(&vector, k) };
    let hits = search(index, asked).await;
    assert_eq!(hits.len(), k.min(expected.len()));
    for (hit, (_, score)) in hits.iter().zip(&expected) {
        // Ids may differ only where scores are equal up to rounding.
        let (_, own) = expected.iter().find(|(id, _)| *id == hit.id).expect("an item of the colour");
        assert!((hit.score - own).abs() < 1e-4 && (hit.score - score).abs() < 1e-4, "{hit:?}: {own} {score}");
    }
}

async fn everything_agrees(index: &dyn Index, model: &Model) {
    let all = index.list(ListQuery { limit: 1000, vectors: true, ..ListQuery::default() }).await.unwrap();
    assert_eq!(all.items.iter().collect::<Vec<_>>(), model.0.values().collect::<Vec<_>>());
    assert_eq!(index.status().await.unwrap().items, model.0.len());
}

pub(crate) async fn random_operations_agree_with_a_model(backend: &dyn Backend) {
    for seed in 1..=3 {
        let (mut noise, mut model) = (Noise(seed), Model::default());
        let mut index = backend.open(&encoder(DIM)).await.unwrap();
        for id in index.list(ListQuery { limit: 1000, ..ListQuery::default() }).await.unwrap().items {
            index.delete(&id.id).await.unwrap(); // of the seed before
        }
        for step in 0..200 {
            match noise.integer(10) {
                0..=3 => put(index.as_ref(), &mut model, &mut noise).await,
                4..=5 => delete(index.as_ref(), &mut model, &mut noise).await,
                6..=7 => look_up(index.as_ref(), &model, &mut noise).await,
                _ => search_for(index.as_ref(), &model, &mut noise).await,
            }
            if step % 60 == 59 && backend.is_persistent() {
                drop(index);
                index = backend.open(&encoder(DIM)).await.unwrap();
                everything_agrees(index.as_ref(), &model).await;
            }
        }
        everything_agrees(index.as_ref(), &model).await;
    }
}

/// A backup is the index as it was; what is changed afterwards is in one of them only.
#[tokio::test]
async fn a_restored_backup_agrees_with_the_model_at_its_time() {
    let (place, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut noise, mut model) = (Noise(7), Model::default());
    let mut index: Arc<dyn Index> = Arc::new(EmbeddedIndex::open(place.path(), &encoder(DIM), &options()).unwrap());
    let mut folder = place.path().to_path_buf();
    for round in 0..4 {
        for _ in 0..30 {
            put(index.as_ref(), &mut model, &mut noise).await;
            delete(index.as_ref(), &mut model, &mut noise).await;
        }
        let copy = copies.path().join(round.to_string());
        EmbeddedIndex::back_up(&folder, &copy).unwrap();
        // Changes that the backup does not have.
        let mut later = Model(model.0.clone());
        put(index.as_ref(), &mut later, &mut noise).await;
        everything_agrees(index.as_ref(), &later).await;
        drop(index);
        index = Arc::new(EmbeddedIndex::open(&copy, &encoder(DIM), &options()).unwrap());
        everything_agrees(index.as_ref(), &model).await;
        folder = copy;
    }
}
