"""Splits a run's state into parts that a call may return, the encoder's first, and joins them again.

    python3 bench/lease/parts.py join FOLDER... --out runs/lease      # on the build machine: all the calls' files -> a run

With the encoder's parts alone the run can be evaluated and exported; with all of them it can be resumed too.
"""
import argparse
import hashlib
import json
import struct
import sys
import tarfile
from pathlib import Path

ENCODER, REST = "encoder", "rest"
RUN_FILES = ["config.toml", "metrics.jsonl", "samples.safetensors"]


def read(whole):
    """A safetensors file's bytes: (metadata, {name: (entry, bytes)})."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8:8 + length]), memoryview(whole)[8 + length:]
    notes = header.pop("__metadata__", {})
    return notes, {name: (entry, data[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def to_bytes(notes, tensors):
    """A safetensors file of those tensors, wide types first, as the format's own writer orders them."""
    width = lambda entry: {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 1)
    order = sorted(tensors, key=lambda name: (-width(tensors[name][0]), name))
    header, at = {"__metadata__": notes}, 0
    for name in order:
        entry, data = tensors[name]
        header[name] = {**entry, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[name][1] for name in order)])


def split(run, folder, size):
    """Writes the last checkpoint's parts of `size` bytes and their manifest into `folder`; gives their names, the encoder's first."""
    notes, tensors = read((run / "checkpoints/last.safetensors").read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    groups = {ENCODER: {}, REST: {}}
    for name, tensor in tensors.items():
        groups[ENCODER if name.startswith("encoder.") else REST][name] = tensor
    manifest = {}
    for group, members in groups.items():
        whole = to_bytes(notes, members)
        for i, start in enumerate(range(0, len(whole), size)):
            piece, name = whole[start:start + size], f"{group}.{i:02}"
            (folder / name).write_bytes(piece)
            manifest[name] = hashlib.sha256(piece).hexdigest()
    (folder / "parts.json").write_text(json.dumps(manifest, indent=1))
    return list(manifest)


def pack(run, folder):
    """The run's small files, for the call's archive."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        if (run / name).exists():
            (folder / name).write_bytes((run / name).read_bytes())


def find(folders, name):
    return [p for folder in folders for p in sorted(Path(folder).rglob(name)) if p.is_file()]


def unpack_run(folders, out):
    """The run's small files and the parts' manifest, from the archive that holds them -> `out`."""
    for path in find(folders, "more.tar.xz"):
        with tarfile.open(path) as packed:
            members = [m for m in packed.getmembers() if m.isfile() and Path(m.name).parent.name == "run"]
            if any(m.name.endswith("/parts.json") for m in members):
                for member in members:
                    Path(out, Path(member.name).name).write_bytes(packed.extractfile(member).read())
                return json.loads(Path(out, "parts.json").read_text())
    sys.exit(f"error: expected an archive more.tar.xz with a run in {', '.join(map(str, folders))}, found none")


def group_bytes(folders, manifest, group):
    """A group's whole file, checked; None where a part is missing."""
    found = {name: next(iter(find(folders, name)), None) for name in manifest if name.startswith(group)}
    if any(path is None for path in found.values()):
        return None
    pieces = []
    for name, path in sorted(found.items()):
        piece = path.read_bytes()
        if hashlib.sha256(piece).hexdigest() != manifest[name]:
            sys.exit(f"error: {path} is not the part that was written: expected SHA-256 {manifest[name]}")
        pieces.append(piece)
    return b"".join(pieces)


def join(folders, out):
    checkpoints = Path(out, "checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    manifest = unpack_run(folders, out)
    encoder, rest = (group_bytes(folders, manifest, group) for group in (ENCODER, REST))
    if encoder is None:
        sys.exit("error: expected all parts of the encoder, found some missing")
    notes, tensors = read(encoder)
    if rest is not None:
        tensors.update(read(rest)[1])
    (checkpoints / "last.safetensors").write_bytes(to_bytes(notes, tensors))
    print(f"{out}: {'the whole state' if rest is not None else 'the encoder alone: other parts are missing'}")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("what", choices=["join"])
    a.add_argument("folders", nargs="+", type=Path)
    a.add_argument("--out", required=True, type=Path)
    a = a.parse_args()
    join(a.folders, a.out)


if __name__ == "__main__":
    main()
