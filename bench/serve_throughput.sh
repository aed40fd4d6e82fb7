#!/bin/sh
# Throughput and latency over HTTP: this server, a FastAPI server, and the bare runtime, on the same cores.
#
#   bench/serve_throughput.sh BUNDLE IMAGE [SECONDS]
#
# Needs wrk (Debian), and for the comparison a Python (PYTHON=...) with fastapi, uvicorn, onnxruntime, pillow, numpy.
# The load generator runs on the same machine: what it costs is taken from both servers alike.
set -eu
bundle=$1 image=$2 seconds=${3:-5}
here=$(dirname "$0")
server=${MACRL_SERVE:-target/release/macrl-serve}
work=$(mktemp -d)
trap 'kill $pid 2>/dev/null || true; rm -rf "$work"' EXIT
cat > "$work/post.lua" <<LUA
local file = io.open("$image", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "image/png"
LUA
load() { # URL CONNECTIONS
    wrk -t1 -c"$2" -d"${seconds}s" --latency -s "$work/post.lua" "$1/embed" |
        awk -v c="$2" '/50%/{p50=$2} /99%/{p99=$2} /Requests\/sec/{r=$2} /Non-2xx/{bad=$NF} END{printf "concurrency %4d  %8.0f images/s  p50 %9s  p99 %9s  other answers %s\n", c, r, p50, p99, bad+0}'
}
if [ -x "${RAW:-target/release/examples/raw_throughput}" ]; then
    echo "bare runtime:"
    "${RAW:-target/release/examples/raw_throughput}" "$bundle" "$image" "$seconds"
fi
"$server" --bundle "$bundle" --listen 127.0.0.1:8971 ${SERVE_FLAGS:-} > "$work/log" &
pid=$!
until curl -sf http://127.0.0.1:8971/ready > /dev/null; do sleep 0.1; done
echo "macrl-serve:"
for c in ${CONCURRENCY:-1 2 4 8 16 32 64 128 256}; do load http://127.0.0.1:8971 "$c"; done
kill "$pid"; wait "$pid" || true
if [ -n "${PYTHON:-}" ]; then
    BUNDLE=$bundle "$PYTHON" "$here/serve_fastapi.py" 8972 > "$work/log" 2>&1 &
    pid=$!
    until curl -sf http://127.0.0.1:8972/ready > /dev/null; do sleep 0.2; done
    echo "FastAPI + uvicorn + onnxruntime + Pillow:"
    for c in ${CONCURRENCY_PYTHON:-1 8 32}; do load http://127.0.0.1:8972 "$c"; done
fi
