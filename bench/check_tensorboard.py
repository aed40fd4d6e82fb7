#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own code and compares every number with metrics.jsonl.

    pip install tensorboard
    macrl-train pretrain --config configs/demo.toml --data data/fashion-mnist --out runs/tb --set train.tensorboard=true
    python3 bench/check_tensorboard.py runs/tb
"""
import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def check(folder: Path) -> None:
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    read = {(tag, e.step): e.value for tag in board.Tags()["scalars"] for e in board.Scalars(tag)}
    logged = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for key, value in line.items():
            if key != "step" and isinstance(value, (int, float)):
                single = struct.unpack("f", struct.pack("f", value))[0]
                logged[f"{line['kind']}/{key}", line["step"]] = single
    missing, extra = logged.keys() - read.keys(), read.keys() - logged.keys()
    wrong = [key for key in logged.keys() & read.keys() if logged[key] != read[key]]
    print(f"{folder}: {len(logged)} numbers logged, {len(missing)} missing, {len(extra)} too many, {len(wrong)} different")
    if not logged or missing or extra or wrong:
        sys.exit(f"for instance: {sorted(missing)[:3]} {sorted(extra)[:3]} {sorted(wrong)[:3]}")


run = Path(sys.argv[1])
for metrics in [run / "metrics.jsonl", *run.glob("finetune/*/metrics.jsonl")]:
    if (metrics.parent / "tensorboard").is_dir():
        check(metrics.parent)
