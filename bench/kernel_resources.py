"""Registers, static shared memory and spills of every CUDA kernel, as ptxas reports them; needs nvcc, no GPU.

    python3 bench/kernel_resources.py [sm_90]
"""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KERNELS = [f"{ROOT}/{crate}/src/cuda/kernels" for crate in ("models/nn", "train")]


def main():
    target = sys.argv[1] if len(sys.argv) > 1 else "sm_90"
    home = os.environ.get("CUDA_HOME")
    nvcc = f"{home}/bin/nvcc" if home else "nvcc"
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas", "-v", "-cubin", f"-arch={target}", "-I", KERNELS[0], "-o", os.devnull]
    text = ""
    for folder in KERNELS:
        run = subprocess.run([*command, f"{folder}/kernels.cu"], check=True, capture_output=True, text=True)
        text += run.stderr
    rows = {}
    for part in text.split("Compiling entry function '")[1:]:
        spills = sum(map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()))
        shared = re.search(r"(\d+) bytes smem", part)
        registers = re.search(r"Used (\d+) registers", part)
        rows[part.split("'")[0]] = (int(registers[1]), int(shared[1]) if shared else 0, spills)
    print("| kernel | registers | static shared, bytes | spills, bytes |\n| --- | --- | --- | --- |")
    for name in sorted(rows):
        base = name.removesuffix("_f32")
        if base != name and rows.get(f"{base}_bf16") == rows[name]:
            continue  # the bfloat16 one says the same
        label = f"{name} (and _f32)" if rows.get(name.replace("_bf16", "_f32")) == rows[name] and "_bf16" in name else name
        print(f"| {label} | " + " | ".join(map(str, rows[name])) + " |")


if __name__ == "__main__":
    main()
