"""A soak test: mixed batch sizes at a share of the full load, to see whether memory grows or latency drifts.

    python bench/serve_soak.py http://127.0.0.1:8080 IMAGE [MINUTES] [LOAD]

Measures the full rate for ten seconds, then asks at LOAD (0.7) times that rate with 1 to 16 images a request, and
prints a line a minute: RSS, images/s, p50, p99; last the slope of RSS and of p50 over the second half.  Standard
library only.
"""
import base64, http.client, json, random, sys, threading, time, urllib.parse

url = urllib.parse.urlparse(sys.argv[1])
image = base64.b64encode(open(sys.argv[2], "rb").read()).decode()
minutes = float(sys.argv[3]) if len(sys.argv) > 3 else 20
load = float(sys.argv[4]) if len(sys.argv) > 4 else 0.7
SIZES = (1, 1, 1, 2, 4, 8, 16)
bodies = {n: json.dumps({"images": [image] * n}) for n in set(SIZES)}
lock, times, images, bad = threading.Lock(), [], 0, 0


def client(seed, until, pause):
    """Sends requests until the deadline, with `pause(images)` seconds between two."""
    global images, bad
    rng, connection = random.Random(seed), http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    due = time.perf_counter()
    while time.perf_counter() < until:
        n = rng.choice(SIZES)
        due += pause(n) * rng.uniform(0.5, 1.5)
        time.sleep(max(0.0, due - time.perf_counter()))
        since = time.perf_counter()
        connection.request("POST", "/embed", bodies[n], {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        with lock:
            times.append(time.perf_counter() - since)
            images += n if answer.status == 200 else 0
            bad += answer.status != 200


def rss():
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return float(next(l for l in lines if l.startswith("process_resident_memory_bytes")).split()[1]) / 2**20


def run(threads, seconds, pause):
    """Images/s, p50 and p99 in ms over this many seconds."""
    global times, images
    times, images = [], 0
    until = time.perf_counter() + seconds
    pool = [threading.Thread(target=client, args=(i, until, pause)) for i in range(threads)]
    [t.start() for t in pool]
    [t.join() for t in pool]
    times.sort()
    return images / seconds, times[len(times) // 2] * 1e3, times[int(0.99 * len(times))] * 1e3


def slope(values):
    """Slope per minute, by least squares."""
    n, mean = len(values), sum(values) / len(values)
    spread = sum((i - (n - 1) / 2) ** 2 for i in range(n))
    return sum((i - (n - 1) / 2) * (v - mean) for i, v in enumerate(values)) / spread if spread else 0.0


full, p50, p99 = run(8, 10, lambda n: 0.0)
print(f"full load {full:.0f} images/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, RSS {rss():.1f} MiB")
rate = load * full / 8
rows = []
for minute in range(max(1, round(minutes))):
    done, p50, p99 = run(8, 60, lambda n: n / rate)
    rows.append((rss(), p50))
    print(f"minute {minute + 1}: RSS {rows[-1][0]:.1f} MiB, {done:.0f} images/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms", flush=True)
half = rows[len(rows) // 2:]
print(f"second half: RSS {slope([r for r, _ in half]):+.3f} MiB/min, p50 {slope([p for _, p in half]):+.3f} ms/min; answers other than 200: {bad}")
