#!/usr/bin/env python3
"""Loads a bundle with the programs that people have, and compares their features and classes with the server's.

    python bench/clients.py models/pretrained/cifar10 --serve target/release/macrl-serve \
        --python transformers4=VENV/bin/python --python transformers5=VENV/bin/python --javascript FOLDER

Prints a Markdown table: program, what was asked of it, on which images, smallest cosine to the server's feature, images with the
server's class.  Exit status 1 where a program gives other features (cosine below 0.9999; in 8 bits 0.999 to a server
that computes in 8 bits) or classes for images
of the network's size.  A refusal is no failure.

The images are made here: of the network's size; others that are not square, one of them with an EXIF orientation; and some with
transparency, a palette, 16 bits or four inks, which not every program reads as the server does.

Needs numpy and pillow here.  Each --python NAME=EXECUTABLE is tried with what it can import: transformers, timm, optimum with ONNX
Runtime, and ONNX Runtime with the model card's example.  --javascript names a folder where `npm install @huggingface/transformers`
was run.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

GROUPS = {"native": "its size", "plain": "not square, EXIF", "special": "alpha, palette, 16 bits, CMYK"}


def make_images(folder, size):
    """Files by group, all of the same colours at every run."""
    import numpy as np
    from PIL import Image

    def picture(width, height, channels, seed):
        draw = np.random.default_rng(seed)
        coarse = draw.integers(0, 256, (6, 6, channels), dtype=np.uint8)
        planes = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)]
        return np.stack([np.asarray(plane) for plane in planes], -1)

    rgb = lambda w, h, seed: Image.fromarray(picture(w, h, 3, seed))
    files = {group: [] for group in GROUPS}

    def save(group, name, image, **options):
        image.save(folder / name, **options)
        files[group].append(str(folder / name))

    for seed in range(8):
        save("native", f"native{seed}.png", rgb(size, size, seed))
    for seed, (width, height) in enumerate([(45, 45), (64, 40), (41, 60), (300, 173), (200, 333)], 10):
        save("plain", f"plain{seed}.png", rgb(width, height, seed))
    save("plain", "photograph.jpg", rgb(1001, 700, 20), quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("plain", "turned.jpg", rgb(90, 60, 21), quality=95, exif=exif)
    save("special", "alpha.png", Image.fromarray(picture(64, 40, 4, 30)))
    grey = picture(50, 70, 1, 31)[..., 0].astype(np.uint16)
    save("special", "sixteen.png", Image.fromarray(grey * 257 // 2))
    palette = rgb(60, 44, 32).quantize(16)
    save("special", "palette.png", palette, transparency=3)
    save("special", "inks.jpg", rgb(70, 50, 33).convert("CMYK"), quality=95)
    return files


@contextlib.contextmanager
def serving(program, bundle, precision):
    """The address of a server that runs the bundle."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % free.getsockname()[1]
    server = subprocess.Popen([program, "--bundle", bundle, "--listen", address, "--precision", precision], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{address}/ready").read()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait()


def ask_server(url, files):
    """Feature and class of each file."""
    kinds = {".png": "image/png", ".jpg": "image/jpeg"}
    answers = {}
    for file in files:
        def post(route):
            headers = {"content-type": kinds[Path(file).suffix]}
            return json.load(urllib.request.urlopen(urllib.request.Request(url + route, Path(file).read_bytes(), headers)))

        answers[file] = post("/embed")["embeddings"][0], post("/classify?top_k=1")["predictions"][0][0]["label"]
    return answers


# What follows runs in the other interpreters: `python clients.py --inside BUNDLE FILES.json`, one JSON line an attempt.


def attempt(client, what, files, compute):
    """Prints what `compute(file)` gave: (feature or None, class or None)."""
    answers = {}
    try:
        step = compute()
        for file in files:
            try:
                feature, label = step(file)
                answers[file] = [None if feature is None else [float(v) for v in feature], label]
            except Exception as why:  # one image that a program does not read
                answers[file] = f"{type(why).__name__}: {why}"
        print(json.dumps({"client": client, "what": what, "answers": answers}), flush=True)
    except Exception as why:
        reason = " ".join(str(why).split())[:100]
        print(json.dumps({"client": client, "what": what, "refused": f"{type(why).__name__}: {reason}"}), flush=True)


def rgb(file):
    from PIL import Image, ImageOps

    return ImageOps.exif_transpose(Image.open(file)).convert("RGB")


def with_transformers(bundle, files):
    import torch
    import transformers
    from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, ViTModel, pipeline

    transformers.logging.set_verbosity_error()
    client = f"transformers {transformers.__version__}"
    inputs = lambda processor, file: processor(rgb(file), return_tensors="pt")

    def pooled():
        processor, model = AutoImageProcessor.from_pretrained(bundle), AutoModel.from_pretrained(bundle).eval()
        return lambda file: (model(**inputs(processor, file)).pooler_output[0].tolist(), None)

    def mean():
        processor, model = AutoImageProcessor.from_pretrained(bundle), AutoModel.from_pretrained(bundle).eval()
        pooling = json.loads((Path(bundle) / "config.json").read_text())["pooling"]
        pick = (lambda h: h[:, 1:].mean(1)) if pooling == "mean" else (lambda h: h[:, 0])
        return lambda file: (pick(model(**inputs(processor, file)).last_hidden_state)[0].tolist(), None)

    def classes():
        processor = AutoImageProcessor.from_pretrained(bundle)
        model = AutoModelForImageClassification.from_pretrained(bundle).eval()
        return lambda file: (None, model.config.id2label[int(model(**inputs(processor, file)).logits.argmax())])

    def extraction():
        extract = pipeline("image-feature-extraction", bundle)
        return lambda file: (extract(file, pool=True)[0], None)

    def classification():
        classify = pipeline("image-classification", bundle)
        return lambda file: (None, classify(file)[0]["label"])

    def wrong():
        model = ViTModel.from_pretrained(bundle).eval()
        processor = AutoImageProcessor.from_pretrained(bundle)
        return lambda file: (model(**inputs(processor, file)).last_hidden_state[:, 1:].mean(1)[0].tolist(), None)

    with torch.inference_mode():
        attempt(client, "AutoImageProcessor, AutoModel: `pooler_output`", files, pooled)
        attempt(client, "AutoModel: pooled from `last_hidden_state`", files, mean)
        attempt(client, "AutoModelForImageClassification", files, classes)
        attempt(client, "pipeline image-feature-extraction, `pool=True`", files, extraction)
        attempt(client, "pipeline image-classification", files, classification)
        attempt(client, "ViTModel, by name", files, wrong)


def with_timm(bundle, files):
    import timm
    import torch

    transform = lambda model: timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    def features():
        model = timm.create_model(f"local-dir:{bundle}", pretrained=True, num_classes=0).eval()
        ready = transform(model)
        return lambda file: (model(ready(rgb(file))[None])[0].tolist(), None)

    def classes():
        model = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
        ready, names = transform(model), json.loads((Path(bundle) / "config.json").read_text())["label_names"]
        return lambda file: (None, names[int(model(ready(rgb(file))[None]).argmax())])

    with torch.inference_mode():
        attempt(f"timm {timm.__version__}", "`local-dir:`, num_classes=0", files, features)
        attempt(f"timm {timm.__version__}", "`local-dir:`", files, classes)


def with_optimum(bundle, files):
    from importlib.metadata import version

    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForImageClassification
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(bundle)
    names = json.loads((Path(bundle) / "config.json").read_text())["id2label"]

    def features():
        model = ORTModelForFeatureExtraction.from_pretrained(bundle, subfolder="onnx", file_name="model.onnx")
        pooling = json.loads((Path(bundle) / "config.json").read_text())["pooling"]
        pick = (lambda h: h[:, 1:].mean(1)) if pooling == "mean" else (lambda h: h[:, 0])
        return lambda file: (pick(model(**processor(rgb(file), return_tensors="pt")).last_hidden_state)[0].tolist(), None)

    def classes(graph):
        def start():
            model = ORTModelForImageClassification.from_pretrained(bundle, subfolder="onnx", file_name=graph)
            return lambda file: (None, names[str(int(model(**processor(rgb(file), return_tensors="pt")).logits.argmax()))])

        return start

    client = f"optimum-onnx {version('optimum-onnx')}"
    attempt(client, "ORTModelForFeatureExtraction, pooled from `last_hidden_state`", files, features)
    attempt(client, "ORTModelForImageClassification", files, classes("model.onnx"))
    attempt(client, "ORTModelForImageClassification, 8 bits", files, classes("model_quantized.onnx"))


def with_card(bundle, files):
    """The model card's example as it stands there."""
    import onnxruntime

    card = (Path(bundle) / "README.md").read_text()
    example = next(block for block in card.split("```python\n")[1:] if "def pixels(" in block).split("\n```")[0]
    labels = json.loads((Path(bundle) / "config.json").read_text())["id2label"]

    def start():
        scope = {}
        exec(example.split("\nsession = ")[0], scope)  # the function alone; the rest opens an image by a fixed name
        session = onnxruntime.InferenceSession(str(Path(bundle) / "onnx/model.onnx"))

        def step(file):
            feature, scores = session.run(["pooler_output", "logits"], {"pixel_values": scope["pixels"](file)})
            return feature[0].tolist(), labels[str(int(scores.argmax()))]

        return step

    attempt(f"ONNX Runtime {onnxruntime.__version__}", "the model card's example", files, start)


def inside(bundle, files):
    for needs, run in [("transformers", with_transformers), ("timm", with_timm), ("optimum.onnxruntime", with_optimum), ("onnxruntime", with_card)]:
        try:
            found = importlib.util.find_spec(needs)
        except ModuleNotFoundError:
            found = None
        if found:
            with contextlib.redirect_stderr(io.StringIO()):
                run(bundle, files)


def judge(line, groups, expected):
    """Table rows of one attempt, and whether it is as it must be."""
    import numpy as np

    head = f"| {line['client']} | {line['what']} |"
    if "refused" in line:
        return [f"{head} | refused: {line['refused']} | |"], True
    rows, good = [], True
    precision = "int8" if "8 bits" in line["what"] or "q8" in line["what"] else "f32"
    limit, expected = 0.999 if precision == "int8" else 0.9999, expected[precision]
    for group, files in groups.items():
        cosines, right, judged, failed = [], 0, 0, 0
        for file in files:
            answer, (feature, label) = line["answers"][file], expected[file]
            if isinstance(answer, str):
                failed += 1
                continue
            if answer[0] is not None:
                a, b = np.array(answer[0]), np.array(feature)
                cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            if answer[1] is not None:
                judged, right = judged + 1, right + (answer[1] == label)
        cosine = f"{min(cosines):.6f}" if cosines else ""
        share = f"{right} of {judged}" if judged else ""
        share += f" ({failed} not read)" if failed else ""
        rows.append(f"{head} {GROUPS[group]} | {cosine} | {share} |")
        if group == "native":
            good = not failed and right == judged and not any(c < limit for c in cosines)
    return rows, good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--serve", default="macrl-serve", help="the server's program")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=EXECUTABLE")
    parser.add_argument("--javascript", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    bundle = arguments.bundle.resolve()
    size = json.loads((bundle / "config.json").read_text())["image_size"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        groups = make_images(Path(scratch), size)
        files = [file for group in groups.values() for file in group]
        listed = Path(scratch) / "files.json"
        listed.write_text(json.dumps(files))
        expected = {}
        for precision in ("f32", "int8"):
            with serving(arguments.serve, bundle, precision) as url:
                expected[precision] = ask_server(url, files)
        commands = [[given.split("=", 1)[1], __file__, "--inside", str(bundle), str(listed)] for given in arguments.python]
        if arguments.javascript:
            script = Path(__file__).with_suffix(".mjs")
            commands.append(["node", str(script), str(arguments.javascript.resolve()), str(bundle), str(listed)])
        print("| program | what | images | smallest cosine | same class |\n| --- | --- | --- | --- | --- |")
        for command in commands:
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
            for line in filter(lambda line: line.startswith("{"), done.stdout.splitlines()):
                rows, holds = judge(json.loads(line), groups, expected)
                print("\n".join(rows), flush=True)
                good &= holds
            if done.returncode:
                print(f"{command[0]} ended with status {done.returncode}", file=sys.stderr)
                good = False
    return 0 if good else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], json.loads(Path(sys.argv[3]).read_text()))
    else:
        sys.exit(main())
