#!/usr/bin/env python3
"""Checks an exported ONNX file with independent tools.

    python bench/check_onnx.py runs/demo/bundle/onnx/model.onnx
    python bench/check_onnx.py encoder.onnx --samples runs/demo/samples.safetensors --url http://127.0.0.1:8080
    python bench/check_onnx.py encoder.onnx --samples runs/demo/samples.safetensors --embeddings embeddings.npy

onnx.checker accepts the file with full shape inference; ONNX Runtime runs it at batch 1 and at a larger one; with
--samples (a run's held-out images), its features are compared with those of --embeddings (.npy, or JSON as /embed
answers) or with those that a running macrl-serve gives for the same images.  Exit code 1 where something is off.

Needs: onnx, onnxruntime, numpy, safetensors; pillow for --url.
"""

import argparse
import base64
import collections
import io
import json
import sys
import urllib.request

import numpy as np
import onnx
import onnxruntime


def check_file(path):
    """onnx.checker with shape inference; prints what is inside."""
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    opset = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    operators = collections.Counter(node.op_type for node in model.graph.node)
    print(f"onnx.checker accepts {path}: opset {opset}, {len(model.graph.node)} nodes")
    print("  " + ", ".join(f"{name} {count}" for name, count in operators.most_common()))
    return {p.key: p.value for p in model.metadata_props}


def open_session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check_shapes(session):
    """Checks that the batch is dynamic and that an image's outputs do not depend on the other images of the batch."""
    (pixels,) = session.get_inputs()
    shape = pixels.shape[1:]
    x = np.random.default_rng(0).standard_normal([3, *shape], dtype=np.float32)
    hidden, pooled = session.run(["last_hidden_state", "pooler_output"], {pixels.name: x})
    alone = session.run(["pooler_output"], {pixels.name: x[1:2]})[0]
    difference = float(np.abs(alone[0] - pooled[1]).max())
    print(f"{pixels.name} {pixels.shape} -> last_hidden_state {hidden.shape}, pooler_output {pooled.shape}; "
          f"batch 1 against batch 3: {difference:.1e}")
    return difference < 1e-3


def features(session, rgb, metadata):
    """u8 (n, S, S, 3) -> pooled features (n, D), normalised as the file's metadata say."""
    mean, std = (np.array(json.loads(metadata[key]), np.float32) for key in ("image_mean", "image_std"))
    x = ((rgb.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return np.concatenate([session.run(["pooler_output"], {"pixel_values": x[i:i + 16]})[0] for i in range(0, len(x), 16)])


def from_server(url, rgb):
    """The same images as PNG through POST /embed, not normalised."""
    from PIL import Image

    rows = []
    for start in range(0, len(rgb), 8):
        images = []
        for image in rgb[start:start + 8]:
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            images.append(base64.b64encode(png.getvalue()).decode())
        body = json.dumps({"images": images, "normalize": False}).encode()
        request = urllib.request.Request(url.rstrip("/") + "/embed", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            rows += json.load(answer)["embeddings"]
    return np.array(rows, np.float32)


def from_file(path):
    if path.endswith(".npy"):
        return np.load(path).astype(np.float32)
    with open(path) as file:
        return np.array(json.load(file)["embeddings"], np.float32)


def compare(ours, others, tolerance, cosine):
    """Directions always; values too unless the other side is L2-normalised."""
    if ours.shape != others.shape:
        print(f"expected {ours.shape} features, found {others.shape}")
        return False
    norms = np.linalg.norm(others, axis=1)
    if np.allclose(norms, 1, atol=1e-4):
        ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    difference = float(np.abs(ours - others).max())
    smallest = float(((ours * others).sum(1) / (np.linalg.norm(ours, axis=1) * norms)).min())
    print(f"features of {len(ours)} images: largest difference {difference:.2e} (at most {tolerance:g}), "
          f"smallest cosine {smallest:.7f} (at least {cosine:g})")
    return difference <= tolerance and smallest >= cosine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file from macrl-export")
    parser.add_argument("--samples", help="a run's samples.safetensors")
    parser.add_argument("--embeddings", help=".npy (n, D), or JSON {\"embeddings\": [[...]]}")
    parser.add_argument("--url", help="a running macrl-serve")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--cosine", type=float, default=0.99999)
    arguments = parser.parse_args()
    metadata = check_file(arguments.model)
    session = open_session(arguments.model)
    good = check_shapes(session)
    if arguments.samples:
        from safetensors.numpy import load_file

        rgb = load_file(arguments.samples)["pixels"]
        ours = features(session, rgb, metadata)
        if arguments.embeddings:
            good &= compare(ours, from_file(arguments.embeddings), arguments.tolerance, arguments.cosine)
        if arguments.url:
            good &= compare(ours, from_server(arguments.url, rgb), arguments.tolerance, arguments.cosine)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
