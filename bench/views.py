"""Compares the input pipeline with torchvision v2: both programs take turns, five rounds, one core, medians and ratios.

    python bench/views.py --small FOLDER_OF_32x32 --large FOLDER_OF_PHOTOS [--rounds 5] [--seconds 3]

Needs torch and torchvision in the Python that runs it, and `cargo build --release --locked -p macrl-train --example bench_views`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def run(command, size, folder, seconds):
    command = command + ["--size", str(size), str(folder), str(seconds)]
    if cores := getattr(os, "sched_getaffinity", None):
        core = min(cores(0))
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, {core})
        )
    else:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=pathlib.Path)
    parser.add_argument("--large", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")
    parser.add_argument("--ours", default=str(pathlib.Path(target) / "release/examples/bench_views"))
    args = parser.parse_args()
    ours, theirs = [args.ours], [sys.executable, str(HERE / "views_torchvision.py")]
    print("| views | torchvision v2, images/s | macrl, images/s | ratio (range) | macrl with masks and target, images/s |")
    print("| --- | --- | --- | --- | --- |")
    for size, folder in ((32, args.small), (224, args.large)):
        if folder is None:
            continue
        pairs = []
        for _ in range(args.rounds):
            a = run(theirs, size, folder, args.seconds)
            b = run(ours, size, folder, args.seconds)
            pairs.append((a["whole"], b["whole"], b["masked"]))
        ratios = [b / a for a, b, _ in pairs]
        median = [statistics.median(column) for column in zip(*pairs)]
        print(
            f"| {size} x {size}, {a['images']} images | {median[0]:,.0f} | {median[1]:,.0f} "
            f"| {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) | {median[2]:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
