#!/bin/sh
# Throughput and latency over HTTP of this server, a FastAPI server, and the bare runtime, on the same cores.
#
#   bench/serve_throughput.sh BUNDLE IMAGE [SECONDS]
#
# First: throughput and latency by number of connections, and the bare runtime's by batch size.  Then ROUNDS
# (5) rounds in which the bare runtime at its best batch, this server and FastAPI take turns.  Last: both servers at half
# of their full load.
#
# FastAPI is measured twice: with the model called from its thread pool, as its documentation recommends, and on its event
# loop, which processes more images but answers no other request meanwhile.
#
# One image a request, or with IMAGES=8 eight as base64 in one JSON body.
#
# Needs wrk (Debian) and curl, and for the comparison a Python (PYTHON=...) with fastapi, uvicorn[standard], onnxruntime,
# pillow, numpy.  The load generator runs on the same machine and takes the same from both servers.
set -eu
bundle=$1 image=$2 seconds=${3:-5} images=${IMAGES:-1}
[ -r "$image" ] || { echo "expected an image at $image" >&2; exit 2; }
here=$(dirname "$0")
raw=${RAW:-target/release/examples/raw_throughput}
ours=http://127.0.0.1:8971 pooled=http://127.0.0.1:8972 looped=http://127.0.0.1:8973
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
load() { # URL CONNECTIONS SCRIPT [SECONDS]: images/s, p50, p99, answers that are not 200, the generator's part of the cores
    (wrk -t1 -c"$2" -d"${4:-$seconds}s" --latency -s "$3" "$1/embed"; times) |
        awk -v n="$images" -v time=$((${4:-$seconds} * $(nproc))) '
            function cpu(text) {split(text, part, "[ms]"); return 60 * part[1] + part[2]}
            /50%/{p50=$2} /99%/{p99=$2} /Requests\/sec/{r=$2} /Non-2xx/{bad=$NF} /^[0-9]+m/{spent=cpu($1) + cpu($2)}
            END{print r * n, p50, p99, bad+0, spent / time}'
}
line() { # NAME images/s p50 p99 bad ...
    printf '%-28s %8.0f images/s  p50 %9s  p99 %9s  other answers %s\n' "$1" "$2" "$3" "$4" "$5"
}
half() { # NAME URL FULL: 32 connections that together ask for half of FULL images/s
    post "$work/half.lua"
    echo "function delay() return math.floor(1000 * 32 * $images / (0.5 * $3) * (0.5 + math.random())) end" >> "$work/half.lua"
    # Longer: all connections start at once, and these first requests must be less than one in a hundred.
    # shellcheck disable=SC2046 # four words
    line "$1" $(load "$2" 32 "$work/half.lua" $((6 * seconds)))
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
    for call in pool loop; do
        port=$([ $call = pool ] && echo 8972 || echo 8973)
        BUNDLE=$bundle CALL=$call "$PYTHON" "$here/serve_fastapi.py" "$port" > "$work/log.$call" 2>&1 &
        pids="$pids $!"
        wait_for "http://127.0.0.1:$port" $!
    done
fi
echo "bare runtime, against the batch:"
"$raw" "$bundle" "$image" "$seconds" | tee "$work/batches" | sed 's/^/  /'
batch=$(awk '$3 > b {b = $3; best = $2 + 0} END {print best}' "$work/batches")
echo "in turns, bare runtime with batches of $batch:"
for round in $(seq "${ROUNDS:-5}"); do
    best=$("$raw" "$bundle" "$image" "$seconds" "$batch" | awk '{print $3}')
    set -- $(load $ours "${BEST:-128}" "$work/post.lua")
    full=$1 generator=$5 pool= loop=
    if [ -n "${PYTHON:-}" ]; then
        set -- $(load $pooled "${BEST_PYTHON:-32}" "$work/post.lua")
        pool=$1
        set -- $(load $looped "${BEST_PYTHON:-32}" "$work/post.lua")
        loop=$1
    fi
    echo "$round $best $full $generator $pool $loop"
done | tee "$work/rounds" | awk '
    function show(name, raw, full, part, pool, loop) {
        printf "  %s: bare runtime %.0f images/s, macrl-serve %.0f (%.3f of it", name, raw, full, full / raw
        printf ", %.3f on the cores that the generator leaves)", full / raw / (1 - part)
        if (pool) printf ", FastAPI %.0f (macrl-serve does %.2f times that)", pool, full / pool
        if (loop) printf ", on its event loop %.0f (%.2f)", loop, full / loop
        print ""
    }
    {show("round " $1, $2, $3, $4, $5, $6); raw += $2; full += $3; part += $4; pool += $5; loop += $6; fflush()}
    END {show("all", raw / NR, full / NR, part / NR, pool / NR, loop / NR)}'
mean() { awk -v column="$1" '{s += $column} END {print s / NR}' "$work/rounds"; }
echo "at half load:"
half "  macrl-serve" $ours "$(mean 3)"
if [ -n "${PYTHON:-}" ]; then half "  FastAPI" $pooled "$(mean 5)"; fi
