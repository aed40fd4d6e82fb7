#!/usr/bin/env python3
"""Runs all calls from start to end on the host's stand-in for a GPU, with every limit of the real machine enforced.

    make rehearse-gpu
    python3 bench/lease/rehearse.py --bin target/release [--python PYTHON] [--data DIR]

`--bin`: binaries built with --features cuda.  `--python`: one with torch, numpy, Pillow and safetensors.  What the machine
lacks here is played: PyTorch runs on the CPU and torch.compile traces without compiling, and ncu is a script that runs its command and writes a page of numbers.  The
network is a small one and the data a few hundred images made here, or `--data` (a folder or a .tar, as prepare.py takes it).
"""
import argparse
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

# The machine's limits.
COMMAND, COMMAND_SECONDS, LEASE_SECONDS, MIB = 2000, 600, 900, 1 << 20
START_SECONDS = 90
TOOLS = ["bash", "timeout"]
CALLS = {
    "evidence": 'python3 lease/1/lease.py evidence --out "$OUT"',
    "encoder": 'python3 lease/2/lease.py encoder --out "$OUT"',
    "state": 'python3 /dev/shm/macrl-lease/program/lease.py state --out "$OUT"',
}
FAKE = """#!{python}
import subprocess, sys
at = next(i for i, word in enumerate(sys.argv) if word.endswith("bench_cuda"))
if "--log-file" in sys.argv:
    page = open(sys.argv[sys.argv.index("--log-file") + 1], "w")
    print('"ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum"', file=page)
    print('"","","byte","byte","ns"', file=page)
    for i in range(6):
        print(f'"{{i}}","ln_fwd_{{2 + i % 2}}_bf16(const float *, int)","{{1000 * i}}","2,000","500"', file=page)
sys.exit(subprocess.run(sys.argv[at:]).returncode)
"""


def say(text):
    print(text, flush=True)


class Failed(Exception):
    pass


def expect(holds, what):
    if not holds:
        raise Failed(what)


def run(command, **more):
    done = subprocess.run([str(c) for c in command], **more)
    expect(done.returncode == 0, f"status {done.returncode}: {' '.join(str(c) for c in command)[:300]}")


def newest(folder, *more):
    return max(p.stat().st_mtime for f in (folder, *more) for p in Path(f).rglob("*") if p.is_file())


def stand_in(python, folder):
    sources = newest(ROOT / "scripts/emulate", ROOT / "models/nn/src/cuda/kernels", ROOT / "train/src/cuda/kernels")
    if not (folder / "libcuda.so.1").exists() or (folder / "libcuda.so.1").stat().st_mtime < sources:
        run([python, ROOT / "scripts/emulate/build.py", folder])


def make_data(python, folder):
    """400 training and 100 test images of coloured waves in CIFAR-10's official layout."""
    folder.mkdir()
    run([python, "-c", f"""
import numpy as np
rng = np.random.default_rng(0)
y, x = np.mgrid[:32, :32]
def record(label):
    phase, slope = rng.uniform(0, 6.3), 0.1 + 0.06 * label
    waves = [120 + 100 * np.sin(slope * (x + (c - 1) * y) + phase) + rng.normal(0, 8, (32, 32)) for c in range(3)]
    return np.concatenate([[label], np.clip(waves, 0, 255).astype(np.uint8).ravel()]).astype(np.uint8)
for name, count in [("data_batch_1", 200), ("data_batch_2", 200), ("test_batch", 100)]:
    np.stack([record(i % 10) for i in range(count)]).tofile("{folder}/" + name + ".bin")
"""])


class Machine:
    """A folder with only the files that were sent, and a PATH with only the programs of the GPU machine."""

    def __init__(self, folder, python, libraries):
        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.scratch = folder, folder / "scratch"
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (self.bin / tool).symlink_to(found)
        self.script("python3", f'#!/bin/sh\nexec "{python}" "$@"\n')
        self.script("ncu", FAKE.format(python=python))
        self.env = {
            "PATH": str(self.bin), "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "LD_LIBRARY_PATH": str(libraries),
            "LEASE_LIBRARIES": str(libraries), "LEASE_SCRATCH": str(self.scratch), "PYTHONUNBUFFERED": "1",
        }
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        expect(shutil.which("cargo", path=str(self.bin)) is None, "cargo is on the machine's PATH")

    def script(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755 | stat.S_IXUSR)

    def call(self, name, carried, tree, seconds):
        """One call: sends a folder, runs the command, returns the files in $OUT."""
        from common import faults_of

        command = CALLS[name].replace("/dev/shm/macrl-lease", str(self.scratch))
        expect(len(CALLS[name]) <= COMMAND, f"{name}: a command of {len(CALLS[name])} characters")
        sent = tree
        if carried:
            place = self.folder / "lease" / carried.name
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(carried, place)
            sent += sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
        expect(sent <= 64 * MIB, f"{name}: {sent / MIB:.1f} MiB sent")
        out = self.folder / "out" / name
        out.mkdir(parents=True)
        begun = time.monotonic()
        with open(self.folder / f"{name}.txt", "w") as log:
            process = subprocess.run(["bash", "-c", command], cwd=self.folder, env={**self.env, "OUT": str(out)}, stdout=log,
                                     stderr=subprocess.STDOUT, timeout=min(COMMAND_SECONDS, seconds + 5))
        wall = time.monotonic() - begun
        say((self.folder / f"{name}.txt").read_text())
        expect(process.returncode == 0, f"{name} ended with status {process.returncode}")
        expect(wall <= seconds, f"{name} took {wall:.0f} of {seconds} s")
        expect(not faults_of(out), f"{name}: {faults_of(out)}")
        files = [p for p in out.rglob("*") if p.is_file()]
        back = sum(p.stat().st_size for p in files)
        say(f"-- {name}: {sent / MIB:.1f} MiB sent, {len(files)} files of {back / MIB:.1f} MiB back, {wall:.0f} s of {seconds}")
        return out, wall


def results(out, *wanted, absent=()):
    text = (out / "results.md").read_text()
    for words in wanted:
        expect(re.search(words, text), f"{out.name}/results.md says nothing of `{words}`")
    for words in absent:
        expect(words not in text, f"{out.name}/results.md says `{words}`")


def at_home(a, work, folders, data, libraries):
    """The steps on the build machine afterwards."""
    run_dir, env = work / "run", {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    run([a.python, HERE / "parts.py", "join", *folders, "--out", run_dir])
    run([a.bin / "macrl-train", "evaluate", "--run", run_dir, "--data", data], env=env)
    (work / "notes.md").write_text("## Licence\n\nNone: this is a rehearsal.\n")
    run([a.bin / "macrl-export", "bundle", work / "bundle", "--run", run_dir, "--device", "cpu", "--weights", "f16",
         "--notes", work / "notes.md"], env=env, cwd=ROOT)
    return run_dir, env


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", type=Path, default=ROOT / "target/release")
    a.add_argument("--python", default=sys.executable)
    a.add_argument("--data", type=Path)
    a.add_argument("--work", type=Path, default=ROOT / "target/rehearsal")
    a = a.parse_args()
    a.bin = a.bin.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    begun, work = time.monotonic(), a.work.resolve()
    libraries = work / "stand-in"
    stand_in(a.python, libraries)
    for name in ("data", "lease", "run", "bundle"):
        shutil.rmtree(work / name, ignore_errors=True)
    run([a.python, HERE / "test_lease.py"])
    data = a.data or work / "data"
    if not a.data:
        make_data(a.python, data)
    run([a.python, HERE / "prepare.py", "--data", data, "--bin", a.bin, "--out", work / "lease", "--tiny"])
    settings = json.loads((work / "lease/1/settings.json").read_text())
    tree = int(subprocess.run([a.python, "-c", "import prepare; print(prepare.tree_bytes())"], cwd=HERE, capture_output=True, check=True).stdout)

    machine = Machine(work / "machine", a.python, libraries)
    seconds = {name: settings[f"{name}_seconds"] for name in CALLS}
    evidence, _ = machine.call("evidence", work / "lease/1", tree, seconds["evidence"])
    results(evidence, r"checks passed, 0 failed, 0 crashed, 0 hung", r"torch\.compile \|", r"bf16 throughout \|", r"ours \|",
            r"kernels, .* GB/s", r"Everything ran", r"first half; MD5 as prepared")
    encoder, _ = machine.call("encoder", work / "lease/2", tree, seconds["encoder"])
    results(encoder, r"both halves; MD5 as prepared", r"The run finished", r"by the first call's trial", r"Brought back: encoder\.00",
            r"the call `state` brings them")
    state, _ = machine.call("state", None, tree, seconds["state"])
    results(state, r"Brought back: rest")

    fresh = Machine(work / "fresh", a.python, libraries)
    lone, _ = fresh.call("encoder", work / "lease/2", tree, seconds["encoder"])
    results(lone, r"second half; MD5 as prepared", r"by a trial", r"Training on all 50,000 images: the other half was not on this machine")

    if data.is_dir():
        run_dir, env = at_home(a, work, [encoder, state], data, libraries)
        run([a.bin / "macrl-train", "pretrain", "--config", run_dir / "config.toml", "--data", data, "--out", run_dir, "--resume",
             "--device", "cuda"], env=env)
    real = sum(json.loads(subprocess.run([a.python, "-c", "import json, settings; print(json.dumps([settings.REAL[c + '_seconds'] "
               "for c in ('evidence', 'encoder', 'state')]))"], cwd=HERE, capture_output=True, check=True).stdout))
    say(f"On a real machine: {START_SECONDS} s to start and {real} s at most in three calls, of {LEASE_SECONDS} s.")
    expect(START_SECONDS + real <= LEASE_SECONDS, "the calls are longer than the lease")
    say(f"The rehearsal went to its end in {time.monotonic() - begun:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except (Failed, subprocess.TimeoutExpired) as why:
        sys.exit(f"error: {why}")
