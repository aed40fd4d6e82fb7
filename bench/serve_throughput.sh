#!/bin/sh
# Throughput and latency over HTTP: this server, a FastAPI server, and the bare runtime, on the same cores.
#
#   bench/serve_throughput.sh BUNDLE IMAGE [SECONDS]
#
# First throughput and latency against the number of connections.  Then ROUNDS (3) rounds in which the bare runtime, this
# server and FastAPI take turns, each at its best; last both servers at half of their full load.
#
# One image a request, or IMAGES=8: so many as base64 in one JSON body.
#
# Needs wrk (Debian) and curl, and for the comparison a Python (PYTHON=...) with fastapi, uvicorn, onnxruntime, pillow,
# numpy.  The load generator runs on the same machine: what it costs is taken from both servers alike.
set -eu
bundle=$1 image=$2 seconds=${3:-5} images=${IMAGES:-1}
[ -r "$image" ] || { echo "expected an image at $image" >&2; exit 2; }
here=$(dirname "$0")
raw=${RAW:-target/release/examples/raw_throughput}
ours=http://127.0.0.1:8971 theirs=http://127.0.0.1:8972
work=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null || true; rm -rf "$work"' EXIT
if [ "$images" = 1 ]; then
    type=image/png body=$image
else
    type=application/json body=$work/body.json
    one=$(base64 -w0 "$image")
    { printf '{"images": ["%s"' "$one"; for _ in $(seq 2 "$images"); do printf ', "%s"' "$one"; done; printf ']}'; } > "$body"
fi
post() { # FILE: wrk's script that sends the body
    cat > "$1" <<LUA
local file = io.open("$body", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "$type"
LUA
}
load() { # URL CONNECTIONS SCRIPT: images/s, p50, p99, answers that are not 200
    wrk -t1 -c"$2" -d"${seconds}s" --latency -s "$3" "$1/embed" |
        awk -v n="$images" '/50%/{p50=$2} /99%/{p99=$2} /Requests\/sec/{r=$2} /Non-2xx/{bad=$NF} END{print r * n, p50, p99, bad+0}'
}
line() { # NAME images/s p50 p99 bad
    printf '%-28s %8.0f images/s  p50 %9s  p99 %9s  other answers %s\n' "$@"
}
half() { # NAME URL FULL: 32 connections that together ask for half of FULL images/s
    post "$work/half.lua"
    echo "function delay() return math.floor(1000 * 32 * $images / (0.5 * $3) * (0.5 + math.random())) end" >> "$work/half.lua"
    # shellcheck disable=SC2046 # four words
    line "$1" $(load "$2" 32 "$work/half.lua")
}
wait_for() { until curl -sf "$1/ready" > /dev/null; do kill -0 "$2" && sleep 0.1; done; }

post "$work/post.lua"
"${MACRL_SERVE:-target/release/macrl-serve}" --bundle "$bundle" --listen "${ours#http://}" ${SERVE_FLAGS:-} > "$work/log" &
pids=$!
wait_for $ours $!
echo "macrl-serve, against connections:"
for c in ${CONCURRENCY:-1 2 4 8 16 32 64 128 256}; do
    # shellcheck disable=SC2046
    line "  $c" $(load $ours "$c" "$work/post.lua")
done
if [ -n "${PYTHON:-}" ]; then
    BUNDLE=$bundle "$PYTHON" "$here/serve_fastapi.py" 8972 > "$work/log" 2>&1 &
    pids="$pids $!"
    wait_for $theirs $!
fi
echo "in turns:"
for round in $(seq "${ROUNDS:-3}"); do
    best=$("$raw" "$bundle" "$image" "$seconds" | awk '$3 > b {b = $3} END {print b}')
    set -- $(load $ours "${BEST:-128}" "$work/post.lua")
    full=$1
    echo "$full $best" | awk -v r="$round" '{printf "  round %d: bare runtime %.0f images/s, macrl-serve %.0f (%.2f of it)", r, $2, $1, $1/$2}'
    if [ -n "${PYTHON:-}" ]; then
        set -- $(load $theirs "${BEST_PYTHON:-32}" "$work/post.lua")
        other=$1
        echo "$full $other" | awk '{printf ", FastAPI %.0f (macrl-serve does %.1f times that)", $2, $1/$2}'
    fi
    echo
done
echo "at half load:"
half "  macrl-serve" $ours "$full"
if [ -n "${PYTHON:-}" ]; then half "  FastAPI" $theirs "$other"; fi
