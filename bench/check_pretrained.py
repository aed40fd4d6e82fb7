#!/usr/bin/env python3
"""Measures a bundle's kNN and linear probe on CIFAR-10 with independent tools and compares them with its own numbers.

    python bench/check_pretrained.py models/pretrained/cifar10 cifar-10-batches-bin
    python bench/check_pretrained.py models/pretrained/cifar10 cifar-10-batches-bin --first 1017
    python bench/check_pretrained.py models/pretrained/cifar10 cifar-10-batches-bin --graph onnx/model_quantized.onnx

Reads onnx/model.onnx (or --graph), preprocessor_config.json and probe.safetensors, nothing else of the bundle but the numbers that
its evaluation.json claims.  --first also evaluates the first N test images alone.  Exit status 1 where an
accuracy on all test images differs by more than 0.2 point.

Needs: onnxruntime, numpy, scikit-learn, safetensors.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file
from sklearn.neighbors import KNeighborsClassifier

TOLERANCE = 0.002
NEIGHBOURS, TEMPERATURE = 20, 0.07
RECORD = 1 + 3 * 32 * 32


def read(files):
    """Official binary batches -> u8 (n, 3, 32, 32), labels (n)."""
    records = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, RECORD) for file in files])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def features(bundle, graph, images, size):
    """u8 (n, 3, 32, 32) -> f32 (n, D), by ONNX Runtime alone."""
    settings = json.loads((bundle / "preprocessor_config.json").read_text())
    assert settings["crop_size"] == {"height": 32, "width": 32}, "this check does not resize"
    mean, std = (np.array(settings[key], np.float32).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    session = onnxruntime.InferenceSession(str(bundle / graph), providers=["CPUExecutionProvider"])

    def embed(batch):
        pixels = (batch.astype(np.float32) * np.float32(settings["rescale_factor"]) - mean) / std
        return session.run(["pooler_output"], {"pixel_values": pixels})[0]

    return np.concatenate([embed(images[i:i + size]) for i in range(0, len(images), size)])


def knn(x, y, xt, k):
    """Whether the vote of cosine neighbours, weighted by exp(similarity / temperature), is each test image's class."""
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute",
                                 weights=lambda distance: np.exp((1 - distance) / TEMPERATURE))
    return model.fit(x, y).predict(xt)


def probe(bundle, xt):
    p = load_file(bundle / "probe.safetensors")
    return (((xt - p["mean"]) / p["std"]) @ p["weight"].T + p["bias"]).argmax(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="the official binary layout: data_batch_1.bin ... test_batch.bin")
    parser.add_argument("--first", type=int, help="also evaluate this many first test images alone")
    parser.add_argument("--graph", default="onnx/model.onnx", help="which of the bundle's graphs")
    parser.add_argument("--batch", type=int, default=8, help="images a call: of the 8-bit graph it shows in the features")
    arguments = parser.parse_args()
    images, labels = read(sorted(arguments.data.glob("data_batch_*.bin")))
    test_images, test_labels = read([arguments.data / "test_batch.bin"])
    x, xt = (features(arguments.bundle, arguments.graph, part, arguments.batch) for part in (images, test_images))
    named = {"knn": knn(x, labels, xt, NEIGHBOURS), "knn1": knn(x, labels, xt, 1), "linear": probe(arguments.bundle, xt)}

    claims = json.loads((arguments.bundle / "evaluation.json").read_text())["rows"]
    claim = next(row for row in claims if row["features"] == "macrl")
    good = True
    for name, classes in named.items():
        right = classes == test_labels
        same = abs(right.mean() - claim[name]) <= TOLERANCE
        good &= same
        part = f"  first {arguments.first}: {100 * right[:arguments.first].mean():6.2f}" if arguments.first else ""
        print(f"{name:7} bundle says {100 * claim[name]:6.2f}  measured {100 * right.mean():6.2f}"
              f"  {'agree' if same else 'DIFFER'}{part}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
