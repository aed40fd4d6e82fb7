"""Two trials of an index through its programs, on vectors in clouds:

copies   2,000 copies of one vector among 47,500 others: how many of 1,500 others are not found by their own vector,
         with the copies and without, and what /duplicates says.
restore  45,000 items, a copy of items.sqlite, 7,000 more and their graph; the copy is put back and 7,100 others imported:
         how many of 710 of these are not found, at once and when the graph is whole.

    python bench/index_trials.py BUNDLE [PROGRAM [copies|restore]]   # needs numpy; PROGRAM is target/release/macrl-serve
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

BUNDLE = sys.argv[1]
PROGRAM = sys.argv[2] if len(sys.argv) > 2 else "target/release/macrl-serve"
DIM = json.load(open(f"{BUNDLE}/config.json"))["hidden_size"]
PORT = 18931


def clouds(n, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(500, DIM))
    vectors = centres[rng.integers(500, size=n)] + 0.7 * rng.normal(size=(n, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")


def put(index, place, name, vectors):
    np.save(f"{place}/{name}.npy", vectors)
    with open(f"{place}/{name}.jsonl", "w") as lines:
        lines.writelines(json.dumps({"id": f"{name}-{i:05}"}) + "\n" for i in range(len(vectors)))
    run = [PROGRAM, "import", "--bundle", BUNDLE, "--index", index, f"{place}/{name}.npy"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)


class Server:
    def __init__(self, index, exact_up_to):
        run = [PROGRAM, "--bundle", BUNDLE, "--index", index, "--exact-up-to", str(exact_up_to)]
        self.process = subprocess.Popen(run + ["--listen", f"127.0.0.1:{PORT}"], stdout=subprocess.DEVNULL)
        while True:
            try:
                self.http = http.client.HTTPConnection("127.0.0.1", PORT)
                if self.ask("GET", "/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)

    def ask(self, method, path, body=None):
        self.http.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
        answer = self.http.getresponse()
        return answer.status, json.loads(answer.read())

    def settle(self):
        while True:
            index = self.ask("GET", "/info")[1]["index"]
            if index["approximate_items"] == index["items"]:
                return
            time.sleep(0.5)

    def missed(self, name, vectors, exact):
        missed = 0
        for i, vector in vectors:
            hits = self.ask("POST", "/search", {"vector": vector.tolist(), "k": 10, "exact": exact})[1]["hits"]
            missed += f"{name}-{i:05}" not in [hit["id"] for hit in hits]
        return missed

    def end(self):
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def copies(place):
    others = clouds(47_500, 1)
    for with_copies in [False, True]:
        index = f"{place}/copies-{with_copies}"
        put(index, place, "other", others)
        if with_copies:
            put(index, place, "copy", np.repeat(others[:1], 2000, axis=0))
        server = Server(index, 40_000)
        server.settle()
        some = [(i, others[i]) for i in range(1, len(others), len(others) // 1500)][:1500]
        print(f"copies {with_copies}: {server.missed('other', some, False)} of {len(some)} not found by their own vector")
        if with_copies:
            cursor, groups = "", {}
            while cursor is not None:
                page = server.ask("GET", f"/duplicates?threshold=0.9999&cursor={cursor.replace(chr(9), '%09')}")[1]
                for group in page["groups"]:
                    groups.setdefault(group["id"], []).extend(hit["id"] for hit in group["duplicates"])
                cursor = page["next"]
            print("groups of duplicates:", {head: len(set(ids)) for head, ids in groups.items()})
        server.end()


def restore(place):
    index = f"{place}/restore"
    put(index, place, "old", clouds(45_000, 2))
    shutil.copy(f"{index}/items.sqlite", f"{place}/items.sqlite")
    put(index, place, "lost", clouds(7_000, 3))
    server = Server(index, 40_000)
    server.settle()
    server.end()
    for file in os.listdir(index):
        if file.startswith("items.sqlite"):
            os.remove(f"{index}/{file}")
    shutil.copy(f"{place}/items.sqlite", f"{index}/items.sqlite")
    new = clouds(7_100, 4)
    put(index, place, "new", new)
    server = Server(index, 40_000)
    some = [(i, new[i]) for i in range(0, len(new), 10)]
    at_once = server.missed("new", some, False)
    server.settle()
    print(f"restored: of {len(some)} new items {at_once} not found at once, {server.missed('new', some, False)} when the"
          f" graph is whole, {server.missed('new', some, True)} exactly")
    server.end()


with tempfile.TemporaryDirectory() as place:
    for trial in [copies, restore]:
        if trial.__name__ in (sys.argv[3:] or ["copies", "restore"]):
            trial(place)
