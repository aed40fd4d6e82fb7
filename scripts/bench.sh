#!/usr/bin/env bash
# The paired measurements of docs/results.md: macrl and PyTorch take turns in one run.  PyTorch is installed from PyPI into
# .deps/bench; BENCH_ROUNDS sets the number of rounds (5).
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
venv=.deps/bench
rounds=${BENCH_ROUNDS:-5}
if [ ! -x "$venv/bin/python" ]; then
    python3 -I -m venv "$venv" || { echo "bench: python3 -I -m venv does not work; install python3-venv" >&2; exit 1; }
    "$venv/bin/pip" install --quiet --requirement scripts/bench-requirements.txt
fi
cargo build --release --locked --workspace --bins --examples

# Ratios to PyTorch differ between processors: its library has no AVX-512 code for AMD's.
printf '\nProcessor: %s, %s cores\n' "$(lscpu | sed -n 's/^Model name: *//p' | head -1)" "$(nproc)"

printf '\n## Training step\n\n'
"$venv/bin/python" bench/step.py --rounds "$rounds"

printf '\n## Inference through ONNX Runtime\n\n'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A ViT-Tiny/4 after one short epoch: its speed does not depend on how well it is trained.
"$venv/bin/python" - "$work" <<'PYTHON'
import os, sys
import numpy as np
from PIL import Image

for size, count in (32, 64), (256, 32):
    for i in range(count):
        folder = f"{sys.argv[1]}/noise-{size}/class-{i % 2}"
        os.makedirs(folder, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(f"{folder}/{i}.png")
PYTHON
target/release/macrl-train pretrain --config configs/cifar10.toml --data "$work/noise-32" --out "$work/run" \
    --set train.epochs=1 --set train.batch_size=32 --set train.accumulate=1 --set evaluate.every_epochs=0 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
target/release/macrl-export bundle "$work/bundle" --run "$work/run" >/dev/null
"$venv/bin/python" bench/inference.py "$work/bundle" --rust target/release/examples/inference

printf '\n## Augmented views\n\n'
"$venv/bin/python" bench/views.py --small "$work/noise-32" --large "$work/noise-256" --rounds "$rounds" --seconds 3

printf '\n## Cost curves\n\n'
"$venv/bin/python" bench/curves.py --rounds "$rounds" --plot docs/cost-curves.svg
