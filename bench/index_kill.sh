#!/bin/sh
# Kills the server process (kill -9) 100 times during concurrent upserts and deletes, on an index of 100,000 items of 192 numbers.
# After each kill, every acknowledged change must be there.
#
#   bench/index_kill.sh [ROUNDS [ITEMS]]
set -eu
MACRL_KILL_ROUNDS=${1:-100} MACRL_KILL_ITEMS=${2:-100000} \
    cargo test --release --locked --workspace --test index -- --nocapture a_kill_loses_nothing
