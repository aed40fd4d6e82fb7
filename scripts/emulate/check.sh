#!/usr/bin/env bash
# check.sh STAND_IN CHECK_CUDA: all checks in several orders of threads and blocks, then training steps whose capture fails
# in every way that the stand-in knows.
set -euo pipefail
export LD_LIBRARY_PATH=$(realpath "$1")
check=$2
for order in forward reverse random:1 random:2; do
    echo "== all checks, order $order"
    EMULATE_ORDER=$order "$check" | grep -v "^pass\|^begin"
done
for fail in break:1 break:40 refuse:1 refuse:40 end instantiate; do
    echo "== steps, captures fail: $fail"
    EMULATE_FAIL=$fail "$check" "steps f32, views made on the GPU" | grep -v "^pass\|^begin"
    EMULATE_FAIL=$fail "$check" "a step that is not finite, bf16" | grep -v "^pass\|^begin"
done
