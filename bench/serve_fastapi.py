"""A typical Python server for the same bundle (FastAPI, uvicorn, onnxruntime, Pillow), for comparison only.

One worker process per core, one runtime thread each.  The model is called from FastAPI's thread pool, as its documentation
has it, or with CALL=loop on the event loop: more images, but nobody else is answered meanwhile.
BUNDLE=runs/demo/bundle python bench/serve_fastapi.py PORT [WORKERS]
"""
import base64, io, json, os, sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image

bundle = os.environ["BUNDLE"]
with open(f"{bundle}/preprocessor_config.json") as file:
    config = json.load(file)
size = config["size"]["shortest_edge"]
mean = np.array(config["image_mean"], np.float32)
std = np.array(config["image_std"], np.float32)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(f"{bundle}/onnx/model.onnx", options)
on_loop = os.environ.get("CALL") == "loop"
app = FastAPI()


def prepare(data):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    w, h = image.size
    if config["do_pad"] and w <= size and h <= size:
        canvas = Image.new("RGB", (size, size))
        canvas.paste(image, (-(-(size - w) // 2), -(-(size - h) // 2)))
        image = canvas
    else:
        r = (size * w // min(w, h), size * h // min(w, h))
        image = image.resize(r, Image.Resampling.BICUBIC)
        left, top = (r[0] - size) // 2, (r[1] - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return ((np.asarray(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1)


def work(body, kind):
    """Embeddings of a body that is one image, or JSON with several in base64."""
    files = [base64.b64decode(text) for text in json.loads(body)["images"]] if kind == "application/json" else [body]
    features = session.run(["pooler_output"], {"pixel_values": np.stack([prepare(data) for data in files])})[0]
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).tolist()


@app.get("/ready")
async def ready():
    return {}


@app.post("/embed")
async def embed(request: Request):
    body, kind = await request.body(), request.headers.get("content-type")
    features = work(body, kind) if on_loop else await run_in_threadpool(work, body, kind)
    return {"model": "macrl", "dim": len(features[0]), "embeddings": features}


if __name__ == "__main__":
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count()
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    uvicorn.run("serve_fastapi:app", port=int(sys.argv[1]), workers=workers, log_level="error", access_log=False)
