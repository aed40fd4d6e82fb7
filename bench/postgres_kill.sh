#!/bin/sh
# Kills PostgreSQL (kill -9) 20 times during concurrent upserts, deletes and searches over HTTP.
#
#   bench/postgres_kill.sh [ROUNDS]
set -eu
MACRL_REQUIRE_POSTGRES=1 MACRL_OUTAGES=${1:-20} \
    cargo test --release --locked --workspace --test index -- --nocapture a_kill_of_the_database
