#!/usr/bin/env bash
# Everything there is to show on a GPU machine, in one command: kernels against the CPU, a training run against the CPU's,
# steps beside PyTorch (eager and torch.compile, bf16), inference.  Each part stands alone: one that fails is named, and
# the next one runs.  Writes gpu-results/results.md (as docs/results.md wants it) and the parts' logs.
#
#   bench/gpu.sh                       # builds with --features cuda where cargo is
#   GPU_BIN=DIR bench/gpu.sh           # takes check_cuda and bench_cuda from DIR: a machine without Rust
#   GPU_PARTS="checks steps" GPU_ONLY="ViT-Tiny/4, batch 1024" GPU_ROUNDS=3 GPU_SECONDS=2 GPU_OUT=DIR bench/gpu.sh
#
# Needs python3 with torch for CUDA 13, numpy and safetensors; onnxruntime with CUDA for the last part.  No network.
set -uo pipefail
cd "$(dirname "$0")/.."

if [ -z "${GPU_BIN:-}" ]; then
    cargo build --release --workspace --features cuda --bins --examples || exit 1
    GPU_BIN=target/release/examples
fi
# cuBLAS and its like, where PyTorch's wheels put them.
libraries=$(python3 - <<'PYTHON'
import glob, sysconfig, site
roots = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"], *site.getsitepackages()}
print(":".join(d for r in sorted(roots) for d in glob.glob(f"{r}/nvidia/cu13/lib") + glob.glob(f"{r}/nvidia/*/lib")))
PYTHON
)
export LD_LIBRARY_PATH="${libraries}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec python3 bench/gpu.py --bin "$GPU_BIN" --out "${GPU_OUT:-gpu-results}" --rounds "${GPU_ROUNDS:-3}" \
    --seconds "${GPU_SECONDS:-1.5}" --parts ${GPU_PARTS:-checks peak losses steps inference onnx}
