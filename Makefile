# Every recipe is something a person could type.  `make demo` and `make test` need Rust, a C++ compiler, git, and Python with pip.
# --locked: exactly the versions and checksums of Cargo.lock.

# candle-onnx's build needs protoc: PROTOC, else the system's, else the one that setup fetched.
export PROTOC ?= $(shell command -v protoc || echo "$(CURDIR)/.deps/bin/protoc")

.PHONY: build setup demo test bench sbom check-cuda rehearse-gpu clean clean-demo distclean

build: setup
	cargo build --release --locked

# ORT=gpu fetches the CUDA build of ONNX Runtime.
setup:
	@scripts/setup.sh

# DEMO_EXIT=1 ends it after the last step; DEMO_PORT=8080 chooses the port.
demo: setup
	@scripts/demo.sh

test: setup
	@scripts/setup.sh tests
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo test --release --locked --workspace
	@scripts/test-page.sh

# Compared with PyTorch in the same run; BENCH_ROUNDS=5 sets the rounds.
bench: setup
	@scripts/bench.sh

# A CycloneDX list of everything that the three programs are built from.
sbom:
	python3 -I scripts/sbom.py target/macrl.cdx.json

# Builds the GPU operators (needs a CUDA toolkit) and checks them on the host's stand-in for a GPU (docs/gpu.md).
check-cuda: setup
	cargo build --release --locked --workspace --features cuda --examples
	python3 scripts/emulate/build.py .deps/emulate
	scripts/emulate/check.sh .deps/emulate target/release/examples/check_cuda

# The calls to a machine with one GPU that is lent for fifteen minutes, from start to end on the stand-in (docs/gpu.md).
# PYTHON: one with torch, numpy, Pillow and safetensors.
PYTHON ?= python3
rehearse-gpu: setup
	cargo build --release --locked --workspace --features cuda --bins --examples
	$(PYTHON) bench/lease/rehearse.py --bin target/release

clean:
	cargo clean

# Removes the demo's run, so that the next demo trains again.  The data stay.
clean-demo:
	rm -rf runs/demo

# Removes everything that was fetched or built, and all runs.
distclean: clean
	rm -rf .deps data/fashion-mnist runs
