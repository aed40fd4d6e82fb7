#!/bin/sh
# 100 times kill -9 under concurrent upserts and deletes, on an index of 100,000 items of 192 numbers.
#
#   bench/index_kill.sh [ROUNDS [ITEMS]]
set -eu
MACRL_KILL_ROUNDS=${1:-100} MACRL_KILL_ITEMS=${2:-100000} \
    cargo test --release --locked --workspace --test index -- --nocapture a_kill_loses_nothing
