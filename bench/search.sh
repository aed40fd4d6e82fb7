#!/bin/sh
# Compares the index with faiss and usearch on the same vectors in one run: load time, memory, queries/s, recall@10, p99.
#
#   bench/search.sh [N [D]]            # 1000000 x 192 takes about half an hour on two cores
#
# Needs a Python (PYTHON=...) with numpy, faiss-cpu and usearch.
set -eu
n=${1:-1000000} d=${2:-192}
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
"$python" "$here/search.py" make "$work" "$n" "$d"
for engine in faiss-flat faiss-hnsw usearch; do "$python" "$here/search.py" "$engine" "$work" "$n" "$d"; done
echo "macrl index, all cores:"
TMPDIR=$work "${BENCH:-target/release/examples/index_bench}" "$n" "$d" "$work/vectors.f32" "$work/queries.f32"
