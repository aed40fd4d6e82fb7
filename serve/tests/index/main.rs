//! Tests of the index backends: a suite that runs for each of them, and tests of features that only one has.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod backends;
mod cases;
mod duplicates;
mod folder;
mod formats;
mod kill;
mod matrix;
mod model;
mod outage;
mod postgres;
mod power;
mod readonly;
mod server;
mod transfer;

use backends::{Backend, Folder, Memory, Postgres};

/// Makes a test of each case for one backend.
macro_rules! suite {
    ($name:ident, $backend:expr, [$($case:ident),* $(,)?]) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let backend = $backend;
                    if backend.is_available() {
                        cases::$case(&backend).await;
                    }
                }
            )*
        }
    };
}

/// Makes a test of every case for one backend.
macro_rules! whole_suite {
    ($name:ident, $backend:expr) => {
        suite!(
            $name,
            $backend,
            [
                items_are_stored_replaced_and_deleted,
                each_item_of_a_batch_has_its_result,
                the_nearest_come_first_and_ties_by_id,
                filters_narrow_searches_and_listings,
                pages_follow_each_other_without_gaps,
                another_encoders_vectors_are_refused,
                an_empty_index_takes_another_encoder,
                thumbnails_and_hashes_are_kept,
                near_duplicates_are_reported_once,
                groups_of_duplicates_are_complete,
                a_long_group_continues_on_the_next_page,
                copies_do_not_hide_other_items_from_approximate_searches,
                samples_are_spread,
                approximate_searches_agree_with_exact_ones,
                changes_after_the_graph_was_built_are_seen,
                concurrent_changes_are_all_applied,
                all_items_are_there_after_reopening,
                random_operations_agree_with_a_model,
            ]
        );
    };
}

whole_suite!(memory, Memory);
whole_suite!(folder_on_disk, Folder::new());
whole_suite!(postgresql, Postgres::new());
