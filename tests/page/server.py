"""Servers and pictures for the tests of the search page."""
import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("MACRL_SERVE", str(ROOT / "target/release/macrl-serve"))
BUNDLE = ROOT / "models/pretrained/cifar10"
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}


def png(width, height, pixel):
    """A PNG whose pixel at (x, y) is pixel(x, y)."""
    rows = b"".join(b"\0" + bytes(v for x in range(width) for v in pixel(x, y)) for y in range(height))
    return encode(width, height, rows)


def flat_png(width, height, colour):
    """A PNG of one colour: large in pixels, small in bytes."""
    row = b"\0" + bytes(colour) * width
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return chunks(width, height, data)


def encode(width, height, rows):
    return chunks(width, height, zlib.compress(rows))


def chunks(width, height, data):
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def picture(label, number, edge=48):
    """Stripes in the colour of a label; number varies their width, direction and brightness."""
    draw = random.Random(f"{label} {number}")
    base, width, upright = COLOURS[label], draw.randint(3, 9), draw.random() < 0.5
    light = draw.uniform(0.5, 1.2)
    scale = edge / 48

    def pixel(x, y):
        stripe = int((x if upright else y) / scale) // width % 2
        return tuple(min(255, int(v * light * (1.0 if stripe else 0.6))) for v in base)

    return png(edge, edge, pixel)


class Server:
    """A server on a free port; `with` ends it."""

    def __init__(self, key=None, port=0, index=None, items=0):
        self.folder = tempfile.TemporaryDirectory()
        self.index = index or self.folder.name + "/index"
        self.key, self.port = key, port
        self.start()
        self.fill(items)

    def start(self):
        environment = {k: v for k, v in os.environ.items() if k != "MACRL_API_KEY"}
        if self.key:
            environment["MACRL_API_KEY"] = self.key
        command = [BINARY, "--bundle", str(BUNDLE), "--index", str(self.index), "--listen", f"127.0.0.1:{self.port}", "--workers", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT)
        line = self.process.stdout.readline()
        if "http://" not in line:
            raise SystemExit(f"the server did not start: {line}")
        self.url = "http://" + line.split("http://")[1].split()[0]
        self.port = int(self.url.rsplit(":", 1)[1])
        deadline = time.time() + 60
        while time.time() < deadline:
            try:
                return self.call("GET", "/ready")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise SystemExit("the server was not ready within 60 s")

    def kill(self):
        """Ends it as a power failure would."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def call(self, method, path, body=None, kind="application/json"):
        data = json.dumps(body).encode() if kind == "application/json" and body is not None else body
        headers = {"Content-Type": kind, **({"Authorization": "Bearer " + self.key} if self.key else {})}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers, method=method), timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def put(self, item, image, **metadata):
        text = urllib.parse.quote(json.dumps(metadata))
        self.call("PUT", f"/items/{urllib.parse.quote(item, safe='')}?metadata={text}", image, "image/png")

    def fill(self, items):
        for number in range(items):
            label = list(COLOURS)[number % 3]
            self.put(f"{label}/{number:03}.png", picture(label, number), label=label, year=1990 + number)

    def vectors(self, items):
        """Items without pictures, at places in a plane."""
        draw = random.Random(7)
        vector = lambda: [draw.gauss(0, 1), draw.gauss(0, 1)] + [draw.gauss(0, .1) for _ in range(190)]
        for start in range(0, items, 50):
            numbers = range(start, min(items, start + 50))
            self.call("POST", "/items", {"items": [{"id": f"v{n:04}", "vector": vector(), "metadata": {"label": f"kind {n % 5}"}} for n in numbers]})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()
        self.folder.cleanup()
