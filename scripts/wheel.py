#!/usr/bin/env python3
"""Packs the programs of target/release into a wheel: `pip install macrl-*.whl`, then `macrl fit ~/photos`.

    cargo build --release && python3 scripts/wheel.py [--bin target/release] [--out dist]

The wheel holds stripped programs and no Python code.  It depends on onnxruntime, whose shared library
the programs find through the python3 beside them.  It runs on this system and newer ones of its kind: the tag is not manylinux.
Needs nothing but Python, and binutils' strip where the programs are not stripped.
"""

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ["macrl", "macrl-train", "macrl-export", "macrl-serve"]


def onnxruntime():
    """The version that setup fetches, which is the one that the tests run with."""
    lines = (ROOT / "scripts/wheels.txt").read_text().splitlines()
    return next(line.split()[0] for line in lines if line.startswith("onnxruntime=="))


def stripped(program, scratch):
    copy = Path(scratch) / program.name
    shutil.copy(program, copy)
    if shutil.which("strip"):
        subprocess.run(["strip", copy], check=True)
    return copy.read_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release")
    parser.add_argument("--out", type=Path, default=ROOT / "target/wheels")
    arguments = parser.parse_args()
    missing = [name for name in PROGRAMS if not (arguments.bin / name).is_file()]
    if missing:
        parser.error(f"{arguments.bin} has no {', '.join(missing)}: cargo build --release makes them")
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    version, platform = package["version"], sysconfig.get_platform().replace("-", "_").replace(".", "_")
    tag, info, data = f"py3-none-{platform}", f"macrl-{version}.dist-info", f"macrl-{version}.data/scripts"
    metadata = (f"Metadata-Version: 2.1\nName: macrl\nVersion: {version}\n"
                "Summary: Pretrain a vision encoder on your own images without labels, then use it over HTTP\n"
                f"License: {package['license']}\nRequires-Python: >=3.9\nRequires-Dist: {onnxruntime()}\n"
                "Description-Content-Type: text/markdown\n\n" + (ROOT / "README.md").read_text())
    wheel = f"Wheel-Version: 1.0\nGenerator: macrl\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files = {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": wheel.encode()}
    for name in ["LICENSE-MIT", "LICENSE-APACHE"]:
        files[f"{info}/{name}"] = (ROOT / name).read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        for name in PROGRAMS:
            files[f"{data}/{name}"] = stripped(arguments.bin / name, scratch)
    record = "".join(f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
                     for name, content in files.items()) + f"{info}/RECORD,,\n"
    files[f"{info}/RECORD"] = record.encode()
    arguments.out.mkdir(parents=True, exist_ok=True)
    place = arguments.out / f"macrl-{version}-{tag}.whl"
    beside = place.with_suffix(".new")
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if "/scripts/" in name else 0o644) << 16
            archive.writestr(entry, content)
    os.replace(beside, place)
    print(f"{place} ({place.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
