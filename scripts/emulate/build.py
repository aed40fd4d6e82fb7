"""Builds stand-ins for the CUDA libraries that run this project's kernels on the host.

    python3 scripts/emulate/build.py OUT_DIR
    LD_LIBRARY_PATH=OUT_DIR target/release/examples/check_cuda

The kernels' own sources are compiled for the host (cuda_on_host.h), and every function that cudarc declares exists:
those of device.cpp and blas.h work, all others say their name and fail.  Needs g++ on x86-64 and cudarc's sources in Cargo's registry
(after `cargo fetch`).  Never put OUT_DIR on a GPU machine's library path.
"""
import glob
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# The network's and those of training alone.
KERNELS = [os.path.normpath(f"{HERE}/../../{crate}/src/cuda/kernels/kernels.cu") for crate in ("models/nn", "train")]
LIBRARIES = ["libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libnvrtc.so.13"]
# A GPU faults where a 16-byte access is not aligned; so does the stand-in, for a tenth of its time.
ALIGNMENT = ["-fsanitize=alignment", "-fno-sanitize-recover=alignment"]


def declared():
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    found = sorted(glob.glob(f"{home}/registry/src/*/cudarc-0.19.*"))
    assert found, "cudarc's sources are not there: run `cargo fetch`"
    for module in ["driver", "cublas", "cublaslt", "curand", "nvrtc"]:
        text = open(f"{found[-1]}/src/{module}/sys/mod.rs").read()
        yield from re.findall(r"pub (?:unsafe )?fn ((?:cu|nv)\w+)\s*\(", text)


def main():
    out = os.path.abspath(sys.argv[1])
    os.makedirs(out, exist_ok=True)
    compile_ = ["g++", "-std=c++17", "-O3", *ALIGNMENT, "-march=native", "-ffp-contract=off", "-fPIC", "-w", f"-I{HERE}",
                *(f"-I{os.path.dirname(kernels)}" for kernels in KERNELS), f'-DKERNELS="{KERNELS[0]}"',
                f'-DTRAINING_KERNELS="{KERNELS[1]}"', f'-DREGISTRY="{out}/registry.h"']
    open(f"{out}/registry.h", "w").close()
    text = subprocess.run(compile_ + ["-E", f"{HERE}/device.cpp"], check=True, capture_output=True, text=True).stdout
    kernels = re.findall(r'extern "C"\s+void\s+(?:\w+\(\d+(?:, *\d+)?\)\s*)?(\w+)\s*\(', text)
    kernels = sorted(set(k for k in kernels if k != "fibre_switch"))
    with open(f"{out}/registry.h", "w") as f:
        f.writelines(f"K({k})\n" for k in kernels)
    works = set(re.findall(r"\bStatus (cu\w+)\(", text))
    with open(f"{out}/others.c", "w") as f:
        f.write("#include <stdio.h>\n")
        for name in sorted(set(declared()) - works):
            f.write(f'int {name}(void) {{ fprintf(stderr, "emulation: {name} is not there\\n"); return 1; }}\n')
    subprocess.run(compile_ + ["-c", "-o", f"{out}/device.o", f"{HERE}/device.cpp"], check=True)
    subprocess.run(["gcc", "-O1", "-fPIC", "-w", "-c", "-o", f"{out}/others.o", f"{out}/others.c"], check=True)
    whole = f"{out}/{LIBRARIES[0]}"
    subprocess.run(["g++", "-shared", *ALIGNMENT, "-Wl,-Bsymbolic", "-o", whole, f"{out}/device.o", f"{out}/others.o"], check=True)
    for name in LIBRARIES[1:]:
        if os.path.lexists(f"{out}/{name}"):
            os.remove(f"{out}/{name}")
        os.symlink(LIBRARIES[0], f"{out}/{name}")
    print(f"{len(kernels)} kernels in {out}")


if __name__ == "__main__":
    main()
