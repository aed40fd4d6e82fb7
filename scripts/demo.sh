#!/usr/bin/env bash
# Every step on real images: fetch, build, pretrain, evaluate, export, serve, search (docs/demo.md).
# A finished run in runs/demo is used again; `make clean-demo` removes it.
#   MODEL=pretrained  serves the CIFAR-10 encoder of models/pretrained instead of training one
#   DEMO_DATA=DIR     with it: search these images (anything that --data takes) instead of CIFAR-10's
#   DEMO_EXIT=1       ends after the last step, with status 0 only if every step worked
#   DEMO_PORT=8080    the server's port (default: 8080 if it is free, else any)
set -euo pipefail
cd "$(dirname "$0")/.."

server=
number=0

step() {
    number=$((number + 1))
    printf '\n== %d/%d %s   [%d:%02d]\n' $number $steps "$*" $((SECONDS / 60)) $((SECONDS % 60))
}

stop_server() {
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
}
trap stop_server EXIT
trap 'printf "\nstopped\n"; exit 130' INT TERM

free_port() {
    python3 -I - <<'PYTHON'
import socket
for port in (8080, 0):
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(s.getsockname()[1])
        break
PYTHON
}

# Waits until $1/ready answers 200, for at most 60 seconds and only while the server runs.
wait_ready() {
    for _ in $(seq 120); do
        kill -0 "$server" 2>/dev/null || { printf 'demo: the server ended; see %s/serve.log:\n' "$run" >&2; tail -n 5 "$run/serve.log" >&2; return 1; }
        if python3 -I -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1] + "/ready", timeout=2)' "$1" 2>/dev/null; then
            return 0
        fi
        sleep 0.5
    done
    printf 'demo: %s/ready did not answer within a minute\n' "$1" >&2
    return 1
}

build() {
    step "Build (release)"
    cargo build --release --locked
    PATH="$PWD/target/release:$PATH"
}

# Training needs neither the server's dependencies nor the export's: it starts after a part of the build.
# `--workspace` keeps the features of dependencies the same, so that the rest of the build begins where this one ends.
build_training() {
    step "Build the training program (release)"
    cargo build --release --locked --workspace --bin macrl-train
    PATH="$PWD/target/release:$PATH"
}

train_model() {
    run=runs/demo data=data/fashion-mnist bundle=runs/demo/bundle steps=8
    step "Fashion-MNIST: 70,000 real images"
    scripts/fetch-fashion-mnist.sh "$data"
    build_training
    step "Pretrain without labels, on this machine"
    macrl-train pretrain --config configs/demo.toml --data "$data" --out "$run" --resume || {
        status=$?
        if [ $status = 2 ]; then printf 'demo: `make clean-demo` removes a run of another configuration\n' >&2; fi
        exit $status
    }
    step "Evaluate; compare with raw pixels and an untrained encoder"
    macrl-train evaluate --run "$run" --data "$data"
    macrl-train report --run "$run"
    build
    step "Export the encoder to ONNX, checked against the original"
    macrl-export bundle "$bundle" --run "$run"
}

take_pretrained() {
    run=runs/demo-pretrained data=${DEMO_DATA:-data/cifar10} bundle=models/pretrained/cifar10 steps=4
    step "Images to search"
    if [ -n "${DEMO_DATA:-}" ]; then
        printf 'data: %s\n' "$data"
    elif ! scripts/fetch-cifar10.sh "$data"; then
        data=data/fashion-mnist
        printf 'demo: Fashion-MNIST instead; the encoder was not trained on such images, and its classes do not fit them\n'
        scripts/fetch-fashion-mnist.sh "$data"
    fi
    build
}

case ${MODEL:-} in
    '') train_model ;;
    pretrained) take_pretrained ;;
    *) printf 'demo: expected MODEL=pretrained or none, found MODEL=%s\n' "$MODEL" >&2; exit 2 ;;
esac

step "Serve it"
mkdir -p "$run"
rm -rf "$run/gallery" "$run/queries"
macrl-train unpack --data "$data" --split train --per-class 200 --out "$run/gallery"
macrl-train unpack --data "$data" --split test --per-class 1 --out "$run/queries"
port=${DEMO_PORT:-$(free_port)}
url=http://127.0.0.1:$port
macrl-serve --bundle "$bundle" --listen "127.0.0.1:$port" >"$run/serve.log" 2>&1 &
server=$!
wait_ready "$url"

step "Search with images that the server has not seen"
rm -f "$run/neighbours.png"
macrl-serve demo --url "$url" --gallery "$run/gallery" --queries "$run/queries" --out "$run/neighbours.png"
[ -s "$run/neighbours.png" ] || { printf 'demo: %s was not written\n' "$run/neighbours.png" >&2; exit 1; }

printf '\n== Done   [%d:%02d]\nneighbours  %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$run/neighbours.png"
if [ -e "$run/report.html" ]; then printf 'report      %s\n' "$run/report.html"; fi
if [ -n "${DEMO_EXIT:-}" ] && [ "$DEMO_EXIT" != 0 ]; then
    exit 0
fi
printf 'server      %s   (Ctrl-C ends it)\n' "$url"
wait "$server"
