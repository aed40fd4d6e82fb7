"""A thousand hostile clients against a server with a memory budget; standard library only.

    python bench/serve_budget.py BUNDLE [--memory 1GiB] [--clients 1000] [--seconds 60] [--server target/release/macrl-serve]

Starts the server, attacks it over kept connections with everything below at once, and asks for /health every 20 ms from a process of
its own.  Prints the statuses, the process's peak of resident memory and the percentiles of /health.  Fails if the process ends, if its peak
exceeds 1.5 times the budget, if /health fails, or if its p99 exceeds --health milliseconds.
"""
import argparse, asyncio, atexit, base64, collections, gzip, http.client, json, multiprocessing, os, random, re, struct, subprocess, sys, time, urllib.request, zlib

arguments = argparse.ArgumentParser()
arguments.add_argument("bundle")
arguments.add_argument("--memory", default="1GiB")
arguments.add_argument("--clients", type=int, default=1000)
arguments.add_argument("--seconds", type=float, default=60)
arguments.add_argument("--health", type=float, default=100)
arguments.add_argument("--server", default="target/release/macrl-serve")
args = arguments.parse_args()


def png(edge, junk=0):
    """edge x edge black pixels: kilobytes that become megabytes; with junk after its end, a file of many bytes a pixel."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = zlib.compress(bytes((1 + 3 * edge) * edge), 9)
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"") + bytes(junk)


def form(parts):
    body = b"".join(b'--XX\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % part for part in parts)
    return body + b"--XX--\r\n"


JSON, FORM, IMAGE = "application/json", "multipart/form-data; boundary=XX", "image/png"
zeros = lambda count: b"[" + b"0," * count + b"0]"
BODIES = [  # what, path, kind, body, more headers
    ("a list of empty items", "POST /items", JSON, b'{"items":[' + b"{}," * 5_000_000 + b"{}]}", ""),
    ("metadata of zeros", "POST /items", JSON, b'{"items":[{"id":"a","metadata":{"a":' + zeros(7_000_000) + b"}}]}", ""),
    ("a filter of 16 MB", "POST /search", JSON, b'{"id":"a","filter":{"a":{"in":' + zeros(8_000_000) + b"}}}", ""),
    ("a filter of 250 kB", "POST /search", JSON, b'{"id":"1","filter":{"a":{"in":' + zeros(125_000) + b"}}}", ""),
    ("a form of 16 MB", "POST /embed", FORM, form([(b"image", bytes(16_000_000))]), ""),
    ("a form of parts", "POST /embed", FORM, form([(b"x", b"")] * 100_000), ""),
    ("a bomb of 12 megapixels", "POST /embed", IMAGE, png(3500), ""),
    ("a bomb of 80 megapixels", "POST /embed", IMAGE, png(9000), ""),
    ("7 MB of 64 x 64 pixels", "POST /embed", IMAGE, png(64, 7_000_000), ""),
    ("base64 of 64 images", "POST /embed", JSON, json.dumps({"images": [base64.b64encode(png(64, 100_000)).decode()] * 64}).encode(), ""),
    ("a packed bomb", "POST /embed", IMAGE, gzip.compress(bytes(1 << 28), 1), "Content-Encoding: gzip\r\n"),
]


def item(number):
    metadata = {f"field {number} {i}": f"value {number} {i}" for i in range(250)}
    return json.dumps({"vector": [random.random() + 0.1 for _ in range(dim)], "metadata": metadata}).encode()


def head(target, length, kind=JSON, more=""):
    return f"{target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}\r\n".encode()


async def answer(reader):
    text = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", text, re.I)
    if length:
        await reader.readexactly(int(length[1]))
    return text[9:12].decode(), b"connection: close" in text.lower()


async def client(number, port, until, statuses):
    rng = random.Random(number)
    while time.time() < until:
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            closed = False
            while time.time() < until and not closed:
                choice = rng.random()
                if choice < 0.08:  # an answer that is not read
                    writer.write(head("GET /items?limit=1000&vectors=true", 0) * 3)
                    await asyncio.sleep(rng.uniform(1, 5))
                    break
                if choice < 0.16:  # a body that does not end
                    writer.write(head("POST /embed", 30_000_000, IMAGE) + bytes(1_000_000))
                    await asyncio.sleep(rng.uniform(1, 5))
                    break
                if choice < 0.4:
                    body = item(rng.randrange(1_000_000))
                    writer.write(head(f"PUT /items/{rng.randrange(1_000_000)}", len(body)) + body)
                elif choice < 0.5:  # pipelined requests
                    writer.write(head("GET /map?points=2000", 0) + head("GET /duplicates?threshold=-1", 0))
                    statuses[(await asyncio.wait_for(answer(reader), 90))[0]] += 1
                else:
                    name, target, kind, body, more = rng.choice(BODIES)
                    writer.write(head(target, len(body), kind, more) + body)
                status, closed = await asyncio.wait_for(answer(reader), 90)
                statuses[status] += 1
        except (OSError, EOFError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            statuses[type(error).__name__] += 1
            await asyncio.sleep(rng.uniform(0, 0.5))
        finally:
            if writer:
                writer.transport.abort()


def attack(part, parts, port, until, results):
    async def all_clients():
        statuses = collections.Counter()
        tasks = [asyncio.create_task(client(n, port, until, statuses)) for n in range(part, args.clients, parts)]
        _, late = await asyncio.wait(tasks, timeout=until - time.time() + 2)
        [task.cancel() for task in late]
        return statuses

    results.put(asyncio.run(all_clients()))


def probe(port, stop, results):
    """Each probe has a connection of its own, as a balancer's has."""
    times, wrong = [], collections.Counter()
    while not stop.is_set():
        since = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/health")
            status = connection.getresponse().status
            connection.close()
        except OSError as error:
            status = type(error).__name__
        times.append(1e3 * (time.perf_counter() - since))
        if status != 200:
            wrong[status] += 1
        time.sleep(0.02)
    results.put((times, wrong))


def memory(pid, name):
    return int(re.search(name + r":\s+(\d+)", open(f"/proc/{pid}/status").read())[1]) / 1024


server = subprocess.Popen([args.server, "--bundle", args.bundle, "--listen", "127.0.0.1:0", "--memory", args.memory], stdout=subprocess.PIPE, text=True)
atexit.register(server.kill)
port = int(server.stdout.readline().rsplit(":", 1)[1])
server.stdout.readline()
info = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/info"))
dim, budget, idle = info["model"]["dim"], info["memory"]["budget"] / 2**20, memory(server.pid, "VmRSS")
print(f"budget {budget:.0f} MiB, sum of the limits {info['memory']['sum'] / 2**20:.0f} MiB, idle {idle:.0f} MiB, {info['limits']['connections']} connections")
faults, results, probes, stop = [], multiprocessing.Queue(), multiprocessing.Queue(), multiprocessing.Event()
prober = multiprocessing.Process(target=probe, args=(port, stop, probes), daemon=True)
prober.start()
until = time.time() + args.seconds
attackers = [multiprocessing.Process(target=attack, args=(part, 2, port, until, results), daemon=True) for part in range(2)]
[attacker.start() for attacker in attackers]
statuses = sum((results.get() for _ in attackers), collections.Counter())
stop.set()
times, wrong = probes.get(timeout=60)
if server.poll() is not None:
    sys.exit(f"the server ended: {server.returncode}")
peak = memory(server.pid, "VmHWM")
full = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/info"))
server.terminate()
server.wait()
times.sort()
at = lambda share: times[min(len(times) - 1, int(share * len(times)))]
print(f"{args.clients} clients for {args.seconds:.0f} s: {dict(statuses.most_common())}")
print(f"{full['index']['items']} items; peak {peak:.0f} MiB of resident memory, {peak - idle:.0f} above idle")
print(f"/health: {len(times)} probes, p50 {at(0.5):.1f} ms, p99 {at(0.99):.1f} ms, longest {times[-1]:.1f} ms, failed {dict(wrong)}")
if peak > 1.5 * budget:
    faults.append("the server took more than 1.5 times its budget")
if wrong:
    faults.append("/health failed")
if at(0.99) > args.health:
    faults.append(f"/health took more than {args.health:.0f} ms")
faults.extend(f"{count} answers were {status}" for status, count in statuses.items() if status.startswith("50") and status not in ("503",))
print("; ".join(faults) or "no fault")
sys.exit(1 if faults else 0)
