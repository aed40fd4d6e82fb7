#!/usr/bin/env python3
"""Checks that every CUDA symbol that the binaries need is in the libraries of CUDA 13.

    python3 bench/lease/symbols.py --bin target/release --libraries SITE-PACKAGES/nvidia/cu13/lib --header cuda.h
    python3 bench/lease/symbols.py --bin target/release --fetch DIR --header cuda.h   # the packages of CUDA 13.0 into DIR, 0.6 GB

The stand-in for a GPU has every name that cudarc declares, so a binary that starts with it may still want one that a real
library does not have.  The driver's library is nowhere but on a GPU machine: its names are looked for in cuda.h of CUDA 13.0.
Where no library is found the check says so and ends with status 0.  Needs readelf and nm (binutils).
"""
import argparse
import re
import subprocess
import sys
from pathlib import Path

from prepare import BINARIES

LIBRARIES = ["libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"]
# The first version of CUDA 13: later versions hold the same symbols.
VERSIONS = {"nvidia-cublas": "13.0.*", "nvidia-curand": "10.4.0.*"}


def output(*command):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout


def wanted(binary):
    """(libraries needed, undefined CUDA symbols, newest glibc)."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-Wd", binary))
    symbols, glibc = set(), (0, 0)
    for line in output("readelf", "-W", "--dyn-syms", binary).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[6] == "UND":
            name, _, version = fields[7].partition("@")
            if re.match(r"cu[A-Z]|cublas|curand|nvrtc", name):
                symbols.add(name)
            found = re.match(r"GLIBC_(\d+)\.(\d+)", version)
            glibc = max(glibc, tuple(map(int, found.groups())) if found else (0, 0))
    return needed, symbols, glibc


def exports(library):
    return {line.split()[-1].split("@")[0] for line in output("nm", "-D", "--defined-only", library).splitlines() if line.strip()}


def fetch(folder):
    """The libraries of the real packages, unpacked into a folder."""
    packages = [f"{package}=={version}" for package, version in VERSIONS.items()]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *packages]
    subprocess.run([str(c) for c in command], check=True)
    return [p for p in folder.rglob("lib") if p.is_dir()]


def declared(header):
    """What the driver's header declares, versions of a name (cuMemAlloc -> cuMemAlloc_v2) among them."""
    return set(re.findall(r"\bcu[A-Z]\w*", header.read_text()))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", type=Path, required=True)
    a.add_argument("--libraries", type=Path, action="append", default=[])
    a.add_argument("--header", type=Path, help="cuda.h")
    a.add_argument("--fetch", type=Path)
    a = a.parse_args()
    folders = a.libraries + (fetch(a.fetch) if a.fetch else [])
    found = {name: next((f / name for f in folders if (f / name).exists()), None) for name in LIBRARIES}
    there = {name: exports(path) for name, path in found.items() if path}
    if a.header and a.header.exists():
        there["libcuda.so.1"] = declared(a.header)
    missing = False
    for binary in BINARIES:
        needed, symbols, glibc = wanted(a.bin / binary)
        libraries = [n for n in needed if n == "libcuda.so.1" or n in LIBRARIES]
        absent = [n for n in libraries if n not in there]
        known = set().union(*(there[n] for n in libraries if n in there))
        lost = sorted(s for s in symbols if s not in known)
        line = f"{Path(binary).name}: {len(symbols)} symbols of {', '.join(libraries)}; glibc {glibc[0]}.{glibc[1]}"
        if absent:
            print(f"{line}; not checked: {', '.join(absent)} not found here")
        elif lost:
            missing = True
            print(f"{line}; not in the real libraries: {', '.join(lost)}")
        else:
            print(f"{line}; all of them are there")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
