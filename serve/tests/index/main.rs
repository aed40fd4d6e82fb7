//! What every index must do: one suite, run over each of them, and what only one of them can be asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod cases;
mod copies;
mod folder;
mod formats;
mod kill;
mod matrix;
mod outage;
mod place;
mod postgres;
mod power;
mod readonly;
mod server;
mod transfer;

use place::{Folder, Memory, Place, Postgres};

/// Makes a test of each case over a kind of place.
macro_rules! suite {
    ($name:ident, $place:expr, [$($case:ident),* $(,)?]) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let place = $place;
                    if place.is_there() {
                        cases::$case(&place).await;
                    }
                }
            )*
        }
    };
}

/// All cases over a kind of place.
macro_rules! whole_suite {
    ($name:ident, $place:expr) => {
        suite!(
            $name,
            $place,
            [
                items_are_stored_replaced_and_deleted,
                each_item_of_a_batch_has_its_result,
                the_nearest_come_first_and_ties_by_id,
                filters_narrow_searches_and_listings,
                pages_follow_each_other_without_gaps,
                another_encoders_vectors_are_refused,
                an_empty_index_takes_another_encoder,
                pictures_and_hashes_are_kept,
                near_duplicates_are_named_once,
                groups_of_duplicates_are_complete,
                a_group_that_is_too_long_goes_on_on_the_next_page,
                copies_hide_nothing_from_approximate_searches,
                samples_are_spread,
                approximate_searches_find_what_exact_ones_do,
                changes_after_the_graph_was_built_are_seen,
                concurrent_changes_are_all_there,
                everything_is_there_again,
            ]
        );
    };
}

whole_suite!(memory, Memory);
whole_suite!(folder_on_disk, Folder::new());
whole_suite!(postgresql, Postgres::new());
