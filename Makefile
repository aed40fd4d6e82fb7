# Thin: each line is something a person could type.  `make demo` and `make test` need Rust, a C++ compiler, git, Python with pip, nothing else.

# candle-onnx's build needs protoc: the user's, the system's, or the one that setup fetched.
export PROTOC ?= $(shell command -v protoc || echo "$(CURDIR)/.deps/bin/protoc")

.PHONY: build setup demo test bench check-cuda rehearse-gpu clean clean-demo distclean

build: setup
	cargo build --release

# ORT=gpu fetches the CUDA build of ONNX Runtime.
setup:
	@scripts/setup.sh

# DEMO_EXIT=1 ends it after the last step; DEMO_PORT=8080 chooses the port.
demo: setup
	@scripts/demo.sh

test: setup
	@scripts/setup.sh tests
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo test --release --workspace

# Ours beside PyTorch in the same run; BENCH_ROUNDS=5 rounds.
bench: setup
	@scripts/bench.sh

# Builds the GPU operators (needs a CUDA toolkit) and checks them on the host's stand-in for a GPU (docs/gpu.md).
check-cuda: setup
	cargo build --release --workspace --features cuda --examples
	python3 scripts/emulate/build.py .deps/emulate
	scripts/emulate/check.sh .deps/emulate target/release/examples/check_cuda

# The calls to a machine with one GPU that is lent for fifteen minutes, from end to end on the stand-in (docs/gpu.md).  PYTHON:
# one with torch, numpy, Pillow and safetensors.
PYTHON ?= python3
rehearse-gpu: setup
	cargo build --release --workspace --features cuda --bins --examples
	$(PYTHON) bench/lease/rehearse.py --bin target/release

clean:
	cargo clean

# Forgets the demo's run, so that the next demo trains again; the data stay.
clean-demo:
	rm -rf runs/demo

# Forgets all that was fetched or made.
distclean: clean
	rm -rf .deps data/fashion-mnist runs
