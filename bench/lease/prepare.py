#!/usr/bin/env python3
"""Fills the folders that both calls send to a machine with a GPU (docs/gpu.md); runs on the build machine.

    python3 bench/lease/prepare.py --data data/cifar10          # builds with --features cuda, fills lease/1 and lease/2

Each folder runs by itself: the scripts, the configurations, the stripped binaries in one .tar.xz and half of CIFAR-10's
training images as lossless strips.  Refuses where a folder and the project's own files are more than may be sent.

Needs Pillow and numpy; strip from binutils.
"""
import argparse
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

import settings
import strips
from common import HERE, MIB, digest

ROOT = HERE.parent.parent
SENT = 64 * MIB
BINARIES = ["examples/check_cuda", "examples/bench_cuda", "macrl-train"]
SCRIPTS = ["lease.py", "common.py", "evidence.py", "encoder.py", "training.py", "checks.py", "contenders.py", "kernels.py",
           "strips.py", "parts.py"]
# Test images to send: the run keeps some for the export's parity check.
TEST = 256
HALVES = ["first half", "second half"]


def tree_bytes():
    """The project's files that every call sends: those that git tracks or would track."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = {ROOT / os.fsdecode(p) for p in listed.split(b"\0") if p}
    return sum(p.lstat().st_size for p in paths if p.is_symlink() or p.is_file())


def build():
    command = ["cargo", "build", "--release", "--workspace", "--features", "cuda", "--bins", "--examples"]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / "target/release"


def pack_binaries(folder, to, preset):
    with lzma.open(to, "wb", preset=preset) as stream, tarfile.open(fileobj=stream, mode="w|") as packed:
        for binary in BINARIES:
            stripped = to.parent / "stripped"
            subprocess.run(["strip", "-o", stripped, folder / binary], check=True)
            packed.add(stripped, arcname=Path(binary).name)
            stripped.unlink()


def official(folder):
    """The official binary files -> (images u8 (n, 3, 32, 32), labels) of the training and the test set."""
    def read(paths):
        raw = np.concatenate([np.fromfile(p, np.uint8) for p in paths]).reshape(-1, 1 + 3 * 32 * 32)
        return raw[:, 1:].reshape(-1, 3, 32, 32), raw[:, 0]

    batches = sorted(folder.glob("data_batch_*.bin"))
    if not batches or not (folder / "test_batch.bin").exists():
        sys.exit(f"error: expected data_batch_1.bin ... and test_batch.bin in {folder}, found others (scripts/fetch-cifar10.sh)")
    return read(batches), read([folder / "test_batch.bin"]), batches[0].stat().st_size // (1 + 3 * 32 * 32)


def strips_of(data, work):
    """Strips of all training images in `work`/strips, their labels, and the test images to send."""
    folder = work / "strips"
    folder.mkdir(parents=True)
    if data.is_dir():
        (images, labels), (test, test_labels), size = official(data)
        starts = range(0, len(images), strips.STRIP)
        with strips.ProcessPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(strips.encode, [images[s:s + strips.STRIP] for s in starts], [folder / f"{s:05}.webp" for s in starts]))
        return folder, labels, (test[:TEST], test_labels[:TEST]), size
    # A .tar of such strips, made earlier: */train/NNNNN.webp, */train-labels.bin, and the same for the test set.
    test = []
    with tarfile.open(data) as packed:
        files = {m.name.split("/", 1)[-1]: m for m in packed.getmembers() if m.isfile()}
        read = lambda name: packed.extractfile(files[name]).read()
        for name in sorted(files):
            if name.startswith("train/"):
                (folder / Path(name).name).write_bytes(read(name))
            elif name.startswith("test-exact/") and len(test) * strips.STRIP < TEST:
                test.append(strips.decode(io.BytesIO(read(name))))
        labels, test_labels = (np.frombuffer(read(f"{split}-labels.bin"), np.uint8) for split in ("train", "test"))
    return folder, labels, (np.concatenate(test)[:TEST], test_labels[:TEST]), strips.FILE


def sums(folders, labels, size, work):
    md5, _ = strips.write(folders, labels, work / "data", size)
    shutil.rmtree(work / "data")
    return md5


def fill(out, number, half, common):
    """One call's folder."""
    folder = out / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "configs", folder / "configs")
    for script in SCRIPTS:
        shutil.copy(HERE / script, folder)
    shutil.copy(HERE.parent / "macrl_torch.py", folder)
    shutil.copytree(half, folder / "strips")
    for name, content in common.items():
        (folder / name).write_bytes(content)
    return folder


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", type=Path, required=True, help="CIFAR-10's official binary files, or a .tar of strips")
    a.add_argument("--bin", type=Path, help="a folder with finished binaries; built where not given")
    a.add_argument("--out", type=Path, default=ROOT / "lease")
    a.add_argument("--tiny", action="store_true", help="the rehearsal's size, with quick compression")
    a = a.parse_args()
    binaries = a.bin or build()
    work = a.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    whole, labels, (test, test_labels), size = strips_of(a.data, work)
    halves = [work / "half-1", work / "half-2"]
    for half in halves:
        half.mkdir()
    for i, strip in enumerate(sorted(whole.iterdir())):
        shutil.move(strip, halves[i % 2])
    md5 = {name: sums([half], labels, size, work) for name, half in zip(HALVES, halves)}
    md5["both halves"] = sums(halves, labels, size, work)
    packed = work / "binaries.tar.xz"
    pack_binaries(binaries, packed, 1 if a.tiny else 9 | lzma.PRESET_EXTREME)
    chosen = dict(settings.TINY if a.tiny else settings.REAL)
    wanted = os.environ.get("GPU_CONTENDERS")
    if wanted:
        chosen["contenders"] = {n: c for n, c in chosen["contenders"].items() if n in wanted.split(";")}
    manifest = {"binaries": digest(packed), "md5": md5, "file_images": size}
    common = {
        "binaries.tar.xz": packed.read_bytes(), "labels.bin": labels.tobytes(), "test_batch.bin": strips.records(test, test_labels),
        "settings.json": json.dumps(chosen, indent=1).encode(), "manifest.json": json.dumps(manifest, indent=1).encode(),
    }
    tree, good = tree_bytes(), True
    for number, half in enumerate(halves, 1):
        folder = fill(a.out, number, half, common)
        own = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        good &= own + tree <= SENT
        print(f"{folder}: {own / MIB:.1f} MiB (binaries {packed.stat().st_size / MIB:.1f}), with the project {(own + tree) / MIB:.1f} of "
              f"{SENT / MIB:.0f} MiB")
    shutil.rmtree(work)
    for name, found in md5["both halves"].items():
        print(f"{name} {found}")
    sys.exit(0 if good else "error: more than may be sent")


if __name__ == "__main__":
    main()
