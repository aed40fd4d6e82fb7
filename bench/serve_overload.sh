#!/bin/sh
# Measures overload: how many requests are still answered with 200, what the others get, and whether memory stays flat.
#
#   bench/serve_overload.sh BUNDLE IMAGE [SECONDS]
#
# First the sustainable rate (32 connections at full speed), then four times that rate from four times as many
# connections as the queue admits images, then the sustainable rate again.  The goodput is compared with the mean of both.
# The load generator shares the machine, and every 429 costs both of them time.
set -eu
bundle=$1 image=$2 seconds=${3:-60} queue=64
server=${MACRL_SERVE:-target/release/macrl-serve}
work=$(mktemp -d)
trap 'kill $pid 2>/dev/null || true; rm -rf "$work"' EXIT
cat > "$work/post.lua" <<LUA
local file = io.open("$image", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "image/png"
LUA
"$server" --bundle "$bundle" --listen 127.0.0.1:8973 --queue $queue --max-images 16 ${SERVE_FLAGS:-} > "$work/log" &
pid=$!
url=http://127.0.0.1:8973
until curl -sf $url/ready > /dev/null; do sleep 0.1; done
rss() { curl -s $url/metrics | awk '/^process_resident_memory_bytes/{printf "%.1f", $2/1048576}'; }
answers() { curl -s $url/metrics | awk '/^macrl_requests_total.*\/embed/{split($1,a,"\""); n[a[6]]+=$2} END{for(s in n) printf "%s=%d ", s, n[s]}'; }
good() { curl -s $url/metrics | awk '/^macrl_images_total/{print $2}'; }
sustained() { # images/s
    before=$(good)
    wrk -t1 -c32 -d10s -s "$work/full.lua" $url/embed > /dev/null
    echo $(( ($(good) - before) / 10 ))
}
cp "$work/post.lua" "$work/full.lua"
peak=$(sustained)
echo "sustainable: $peak images/s, RSS $(rss) MiB"
# Each connection pauses between requests so that all together send at four times the sustainable rate.
echo "function delay() return math.floor(1000 * 4 * $queue / (4 * $peak) * (0.5 + math.random())) end" >> "$work/post.lua"
wrk -t1 -c$((4 * queue)) -d"${seconds}s" --latency -s "$work/post.lua" $url/embed > "$work/out" &
load=$!
sleep 2
first=$(good); since=$(date +%s.%N)
for i in 1 2 3 4; do sleep $(( (seconds - 4) / 4 )); echo "  RSS $(rss) MiB, answers $(answers)"; done
last=$(good); until_=$(date +%s.%N)
wait $load
grep -E "99%|Non-2xx|Requests/sec" "$work/out"
sleep 1
curl -s -o /dev/null -w "a second later: %{http_code} in %{time_total} s\n" -X POST -H 'Content-Type: image/png' --data-binary @"$image" $url/embed
echo "RSS $(rss) MiB"
again=$(sustained)
echo "sustainable again: $again images/s"
echo "$first $last $since $until_ $peak $again" |
    awk '{g = ($2 - $1) / ($4 - $3); printf "goodput %.0f images/s = %.3f of sustainable\n", g, 2 * g / ($5 + $6)}'
