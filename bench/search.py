"""Runs other engines on the vectors that index_bench searches; see search.sh.

    search.py make|faiss-flat|faiss-hnsw|usearch FOLDER N D
"""
import resource
import sys
import threading
import time

import numpy as np

SPAN = 3.0  # seconds for each figure
THREADS = 2


def make(folder, n, d):
    """Unit vectors around 1000 centres, spread mostly along 24 directions that all clusters share, and a little along all others."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(-1, 1, (1000, d)).astype(np.float32)
    directions = rng.uniform(-0.5, 0.5, (24, d)).astype(np.float32)
    for name, count in (("vectors", n), ("queries", 1000)):
        with open(f"{folder}/{name}.f32", "wb") as file:
            for start in range(0, count, 100_000):
                m = min(100_000, count - start)
                x = centres[rng.integers(0, 1000, m)] + rng.uniform(-1, 1, (m, 24)).astype(np.float32) @ directions
                x += rng.uniform(-0.1, 0.1, (m, d)).astype(np.float32)
                file.write((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32).tobytes())


def exact(vectors, queries, k=10):
    best = []
    for q in np.array_split(queries, 20):
        scores = q @ vectors.T
        best.append(np.argpartition(-scores, k, axis=1)[:, :k])
    return np.concatenate(best)


def figures(name, search, queries, truth, threads=THREADS):
    """search(queries (Q, D)) -> ids (Q, 10)"""
    if truth is not None:
        found = np.concatenate([search(queries[i : i + 1]) for i in range(len(queries))])
        hits = sum(len(set(a) & set(b)) for a, b in zip(found, truth))
        print(f"{name}: recall@10 {hits / found.size:.4f}")
    times, since = [], time.perf_counter()
    while time.perf_counter() - since < SPAN:
        one = time.perf_counter()
        search(queries[len(times) % len(queries)][None])
        times.append(time.perf_counter() - one)
    times = np.array(times) * 1e3
    print(f"{name}: one at a time {len(times) / SPAN:.0f} queries/s, p50 {np.median(times):.3f} ms, p99 {np.quantile(times, 0.99):.3f} ms")
    done = [0] * threads

    def run(t):
        since = time.perf_counter()
        while time.perf_counter() - since < SPAN:
            search(queries[(done[t] * 7 + t) % len(queries)][None])
            done[t] += 1

    pool = [threading.Thread(target=run, args=(t,)) for t in range(threads)]
    [t.start() for t in pool], [t.join() for t in pool]
    print(f"{name}: {threads} threads {sum(done) / SPAN:.0f} queries/s")
    calls, since = 0, time.perf_counter()
    while time.perf_counter() - since < SPAN:
        search(queries[:64])
        calls += 1
    print(f"{name}: 64 together {64 * calls / (time.perf_counter() - since):.0f} queries/s")


def main():
    engine, folder, n, d = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if engine == "make":
        make(folder, n, d)
        return
    vectors = np.fromfile(f"{folder}/vectors.f32", np.float32).reshape(n, d)
    queries = np.fromfile(f"{folder}/queries.f32", np.float32).reshape(-1, d)
    since = time.perf_counter()
    truth = None
    if engine.startswith("faiss"):
        import faiss

        faiss.omp_set_num_threads(THREADS)
        if engine == "faiss-flat":
            index = faiss.IndexFlatIP(d)
        else:
            index = faiss.IndexHNSWFlat(d, 32, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction, index.hnsw.efSearch = 128, 256
        index.add(vectors)
        search = lambda q: index.search(q, 10)[1]
    else:
        from usearch.index import Index

        # As in the graph of macrl's index: bf16, 16 edges, 128 candidates while adding and these while searching
        # (expansion_search in serve/src/index/embedded/graph.rs).
        candidates = 256 if n <= 250_000 else 384
        index = Index(ndim=d, metric="ip", dtype="bf16", connectivity=16, expansion_add=128, expansion_search=candidates)
        index.add(np.arange(n), vectors, threads=THREADS)
        search = lambda q: index.search(q, 10).keys.reshape(len(q), -1)
    print(f"{engine}: built in {time.perf_counter() - since:.1f} s")
    if engine != "faiss-flat":
        truth = exact(vectors, queries)
    figures(engine, search, queries, truth)
    print(f"{engine}: largest resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB (with {vectors.nbytes >> 20} MiB of NumPy)")


main()
