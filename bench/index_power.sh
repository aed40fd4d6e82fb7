#!/bin/sh
# 5000 power cuts at random moments of 160 changes, played on a record of every write and sync below SQLite.
#
#   bench/index_power.sh [CUTS]
set -eu
MACRL_POWER_CUTS=${1:-5000} \
    cargo test --release --workspace --test index -- --nocapture a_power_cut_loses_nothing
