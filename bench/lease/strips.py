"""Packs CIFAR-10's training images into lossless WebP strips of 100 images, half of them for each call, and unpacks them.

Strip NNNNN holds images NNNNN .. NNNNN + 99 below each other, 32 pixels wide.  The first call takes every other strip and
the second call the rest, so that either half holds 5,000 images of each of the five official files.
"""
import hashlib
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

EDGE, STRIP, FILE = 32, 100, 10_000


def decode(path):
    """A strip -> u8 (n, 3, 32, 32)."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return pixels.reshape(-1, EDGE, EDGE, 3).transpose(0, 3, 1, 2)


def encode(images, path):
    """u8 (n, 3, 32, 32) -> a strip."""
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(-1, EDGE, 3)
    Image.fromarray(pixels).save(path, "WEBP", lossless=True, quality=100, method=6)


def records(images, labels):
    """The official binary layout: a label byte, then planes R, G, B."""
    return np.concatenate([labels.reshape(len(images), 1), images.reshape(len(images), -1)], 1).tobytes()


def write(folders, labels, out, size=FILE):
    """Writes data_batch_N.bin of the strips in `folders` to `out`; gives each file's MD5 and the number of images.

    `labels`: one byte an image of the whole training set; `size`: images of a whole file.
    """
    strips = {p.name: p for folder in folders for p in Path(folder).glob("*.webp")}
    names = sorted(strips)
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        images = list(pool.map(decode, [strips[n] for n in names], chunksize=8))
    files = {}
    for name, strip in zip(names, images):
        first = int(name[:5])
        files.setdefault(first // size + 1, []).append(records(strip, labels[first:first + len(strip)]))
    Path(out).mkdir(parents=True, exist_ok=True)
    md5, count = {}, 0
    for number, parts in files.items():
        content = b"".join(parts)
        Path(out, f"data_batch_{number}.bin").write_bytes(content)
        md5[f"data_batch_{number}.bin"] = hashlib.md5(content).hexdigest()
        count += len(content) // (1 + 3 * EDGE * EDGE)
    return md5, count


def unpack(here, scratch, manifest):
    """This call's strips and those that an earlier one left -> `scratch`/data; gives what it is, in words, and the count.

    Raises where the images are not the ones that were prepared.
    """
    kept = Path(scratch, "strips")
    kept.mkdir(parents=True, exist_ok=True)
    for path in Path(here, "strips").glob("*.webp"):
        Path(kept, path.name).write_bytes(path.read_bytes())
    labels = np.frombuffer(Path(here, "labels.bin").read_bytes(), np.uint8)
    md5, count = write([kept], labels, Path(scratch, "data"), manifest["file_images"])
    expected = manifest["md5"]
    which = next((name for name, sums in expected.items() if sums == md5), None)
    if which is None:
        raise RuntimeError(f"the decoded images are not those that were prepared: {json.dumps(md5)}")
    test = Path(here, "test_batch.bin")
    if test.exists():
        Path(scratch, "data", "test_batch.bin").write_bytes(test.read_bytes())
    return which, count


if __name__ == "__main__":
    here, scratch = sys.argv[1:3]
    which, count = unpack(here, scratch, json.loads(Path(here, "manifest.json").read_text()))
    print(json.dumps({"which": which, "images": count}))
