"""Hostile input against a running server; standard library only.

    python bench/serve_hostile.py http://127.0.0.1:8080 FOLDER_OF_IMAGES GOOD_IMAGE [MUTATIONS]

Every file of the folder, mutated copies of them (byte flips, truncations, announced sizes that lie), wrong types, deep
JSON, decompression bombs, endless bodies, packed bombs and slow-loris connections; and clients that keep their connections, over every
answer that comes before the body (serve_keepalive.py) and over the refusals of a full queue.  Meanwhile an ordinary client asks for
GOOD_IMAGE up to fifty times a second.  Fails on any 5xx, any missing or lost answer, or where the ordinary client's p99 exceeds twice
its p99 under a load of the same images unharmed.
"""
import base64, collections, gzip, http.client, json, multiprocessing, os, random, socket, struct, sys, threading, time, urllib.parse, zlib

import serve_keepalive

url, folder, good = urllib.parse.urlparse(sys.argv[1]), sys.argv[2], open(sys.argv[3], "rb").read()
mutations = int(sys.argv[4]) if len(sys.argv) > 4 else 5000
host, port = url.hostname, url.port
statuses, faults = collections.Counter(), []


def post(body, kind="image/png", path="/embed", connection=None, **more):
    c = connection or http.client.HTTPConnection(host, port, timeout=60)
    c.request("POST", path, body, {"Content-Type": kind, **more})
    answer = c.getresponse()
    return answer.status, answer.read()


def attack(name, body, kind="image/png", path="/embed", **more):
    try:
        status, text = post(body, kind, path, **more)
    except OSError as error:
        faults.append(f"{name}: no answer ({error})")
        return
    statuses[status] += 1
    if status >= 500:
        faults.append(f"{name}: {status} {text[:200]}")


def mutate(data, rng):
    data = bytearray(data)
    choice = rng.random()
    if choice < 0.5:
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif choice < 0.7:
        del data[rng.randrange(len(data)):]
    elif choice < 0.9:  # sizes stand within the first bytes of every format
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(64, len(data)))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
    else:
        start = rng.randrange(len(data))
        data[start:start + rng.randrange(200)] = rng.randbytes(rng.randrange(200))
    return bytes(data)


def ask_now_and_then(stop, results):
    connection = http.client.HTTPConnection(host, port, timeout=60)
    times, wrong = [], []
    while not stop.is_set():
        since = time.perf_counter()
        status, _ = post(good, connection=connection)
        times.append(time.perf_counter() - since)
        if status != 200:
            wrong.append(status)
        time.sleep(0.02)
    results.put((times, wrong))


class Ordinary:
    """A client with a valid image, in its own process, so that the attackers' interpreter does not slow it down."""

    def __init__(self):
        self.stop, self.results = multiprocessing.Event(), multiprocessing.Queue()
        self.process = multiprocessing.Process(target=ask_now_and_then, args=(self.stop, self.results), daemon=True)

    def start(self):
        self.process.start()

    def p99(self):
        self.stop.set()
        times, wrong = self.results.get()
        faults.extend(f"ordinary client: {status}" for status in wrong)
        times.sort()
        return times[min(len(times) - 1, int(0.99 * len(times)))]


def several(work, items, threads=4):
    queue, lock = iter(items), threading.Lock()

    def worker():
        while True:
            with lock:
                item = next(queue, None)
            if item is None:
                return
            work(*item)

    pool = [threading.Thread(target=worker) for _ in range(threads)]
    [t.start() for t in pool]
    [t.join() for t in pool]


names = sorted(n for n in os.listdir(folder) if os.path.isfile(os.path.join(folder, n)) and n != "SHA256SUMS")
files = [(n, open(os.path.join(folder, n), "rb").read()) for n in names]
files = [(n, d) for n, d in files if d]

ordinary = Ordinary()
ordinary.start()
several(attack, [(n, d) for _ in range(max(1, mutations // 4 // len(files))) for n, d in files])
usual = ordinary.p99()
print(f"{len(files)} files as they are, again and again: {dict(statuses)}; ordinary client's p99 {usual * 1e3:.1f} ms")
statuses.clear()

def bomb(edge):
    """A PNG of edge x edge black pixels: kilobytes that become megabytes."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 3 * edge) * edge), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# Prepared in advance: compressing them costs this machine more than decompressing costs the server.
bombs = [(f"bomb {edge}", bomb(edge)) for edge in (2000, 5000, 7000, 9000)]
rng = random.Random(1)
small = [(n, d) for n, d in files if len(d) < 300_000]
ordinary = Ordinary()
ordinary.start()
loris = []
for _ in range(100):
    s = socket.create_connection((host, port))
    s.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n" + rng.choice([b"", b"\r\nxx"]))
    loris.append(s)
several(attack, ((f"{n} mutated {i}", mutate(d, rng)) for i, (n, d) in enumerate(rng.choices(small, k=mutations))))
print(f"{mutations} mutations: {dict(statuses)}")
statuses.clear()

deep = b'{"images":' + b"[" * 1_000_000
odd = [
    ("empty", b"", "image/png", "/embed"),
    ("text as image", b"hello", "image/png", "/embed"),
    ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "/embed"),
    ("deep JSON", deep, "application/json", "/embed"),
    ("deep object", b'{"a":' * 500_000, "application/json", "/items"),
    ("binary JSON", os.urandom(1_000_000), "application/json", "/search"),
    ("many strings", b'{"images":[' + b'"",' * 1_000_000 + b'""]}', "application/json", "/embed"),
    ("huge vector", b'{"vector":[' + b"1," * 2_000_000 + b"1]}", "application/json", "/search"),
    ("form without end", b"--x\r\n" * 100_000, "multipart/form-data; boundary=x", "/embed"),
    ("form of headers", b"--x\r\n" + b"A: b\r\n" * 100_000, "multipart/form-data; boundary=x", "/embed"),
    ("no type", b"x", "", "/embed"),
    ("text", b"x", "text/plain", "/embed"),
    ("unknown route", good, "image/png", "/../../etc/passwd"),
]
several(attack, odd)
packed = gzip.compress(bytes(1 << 30), 1)  # a GiB of nothing in 5 MB
for coding, body in (("gzip", packed), ("gzip", packed[:1000]), ("br", os.urandom(100_000)), ("zstd", os.urandom(100_000)), ("gzip, gzip", packed)):
    attack(f"packed as {coding}", body, **{"Content-Encoding": coding})
print(f"odd and packed bodies: {dict(statuses)}")
statuses.clear()


several(attack, bombs * 3)
print(f"decompression bombs of 4 to 81 megapixels: {dict(statuses)}")
statuses.clear()


def endless():
    """A chunked body without end: the server must end it."""
    s = socket.create_connection((host, port), timeout=60)
    s.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    sent = 0
    try:
        while sent < 1 << 30:
            s.sendall(chunk)
            sent += 0x10000
    except OSError:
        pass
    if sent >= 1 << 30:
        faults.append("an endless body was read to 1 GiB")
    return sent


print(f"endless body cut off after {endless() / 1e6:.0f} MB; others: {dict(statuses)}")
hostile = ordinary.p99()


def keeps_asking(number, refused):
    """One connection through a full queue: each answer is 200 or 429, and none is lost."""
    connection = http.client.HTTPConnection(host, port, timeout=120)
    body = json.dumps({"images": [base64.b64encode(good).decode()] * 64})
    for _ in range(20):
        try:
            status, text = post(body, "application/json", connection=connection)
        except Exception as error:
            faults.append(f"kept connection {number}: {type(error).__name__} {error}")
            connection = http.client.HTTPConnection(host, port, timeout=120)
            continue
        statuses[status] += 1
        if status not in (200, 429):
            faults.append(f"kept connection {number}: {status} {text[:200]}")


several(keeps_asking, [(i, None) for i in range(16)], threads=16)
print(f"16 kept connections through a full queue: {dict(statuses)}")
sent, lost = serve_keepalive.run(url, 100)
faults.extend(lost)
print(f"kept connections over answers before the body: {dict(sent)} requests, {len(lost)} lost")
print(f"ordinary client's p99 meanwhile {hostile * 1e3:.1f} ms ({hostile / usual:.2f} x usual)")
if hostile > 2 * max(usual, 0.005):
    faults.append("the ordinary client was slowed down more than twofold")
status, _ = post(good)
print(f"afterwards: {status}; faults: {len(faults)}")
for fault in faults[:20]:
    print("  " + fault)
sys.exit(1 if faults or status != 200 else 0)
