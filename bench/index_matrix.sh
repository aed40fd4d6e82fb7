#!/bin/sh
# 100 rounds of kill -9, copies (by `backup` and of the folder) and restores of an index, below and above the limit
# of exact search. After each, every item is read and many are searched for by their own vectors.
#
#   bench/index_matrix.sh [ROUNDS [SEED]]
set -eu
MACRL_MATRIX_ROUNDS=${1:-100} MACRL_MATRIX_SEED=${2:-3} \
    cargo test --release --locked --workspace --test index -- --nocapture restored_and_killed_indexes
