"""One training step of macrl and of PyTorch, in processes that start at the same time and take turns later."""
import json
import os
import select
import statistics
import struct
import sys
import time
import tomllib

from common import HERE, end


class Worker:
    """A process that prints `ready LOSS ...` and then answers lines."""

    def __init__(self, call, name, command, env=None):
        self.name, self.losses, self.rest = name, None, b""
        self.log = call.work / f"{name.replace(' ', '-').replace(',', '')}.log"
        self.process = call.popen(command, stdin=-1, stdout=-1, stderr=open(self.log, "a"), env={**os.environ, **(env or {})})

    def line(self, seconds):
        """Its next line; the process is ended if there is none in time."""
        until, output = time.monotonic() + seconds, self.process.stdout.fileno()
        while b"\n" not in self.rest:
            ready, _, _ = select.select([output], [], [], max(0.0, until - time.monotonic()))
            piece = os.read(output, 65536) if ready else b""
            if not piece:
                state = "ended" if ready else f"gave nothing within {seconds:.0f} s"
                self.close()
                raise RuntimeError(f"{self.name} {state}: {last_line(self.log)}")
            self.rest += piece
        line, self.rest = self.rest.split(b"\n", 1)
        return line.decode(errors="replace").strip()

    def start(self, seconds):
        first = self.line(seconds).split()
        if first[0] != "ready":
            raise RuntimeError(f"{self.name} said {' '.join(first)[:200]}")
        self.losses = [float(x) for x in first[1:]]

    def ask(self, text, seconds=60):
        self.process.stdin.write(f"{text}\n".encode())
        self.process.stdin.flush()
        return self.line(seconds)

    def close(self):
        end(self.process)


def last_line(path):
    lines = path.read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if "Error:" in line or line.startswith("error:")]
    return (errors or lines or ["it left no word"])[-1].strip()[:300]


def header(path):
    """A safetensors file's header."""
    with open(path, "rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


def flops(dump):
    """Multiplications and additions of a step's products for one image: 2 x parameters x tokens of each matrix, three times
    for forward and both gradients, once for the key branch; attention's 4 T^2 D a block likewise."""
    c = tomllib.loads(header(f"{dump}/state.safetensors")["__metadata__"]["config"])
    e, d, p = c["encoder"], c["decoder"], c["projector"]
    n, values, ratio = (e["image_size"] // e["patch_size"]) ** 2, 3 * e["patch_size"] ** 2, e["mlp_ratio"]
    strong, weak = (1 + n - round(c["views"][v]["mask_ratio"] * n) for v in ("strong", "weak"))

    def stack(t, width, layers, ratio):
        return layers * (2 * (4 + 2 * ratio) * width * width * t + 4 * t * t * width)

    def encoder(t):
        return 2 * values * e["width"] * (t - 1) + stack(t, e["width"], e["depth"], ratio)

    def decoder(t):
        width = d["width"]
        return 2 * e["width"] * width * t + stack(1 + n, width, d["depth"], 4) + 2 * width * values * (1 + n)

    head = 2 * (e["width"] * p["hidden"] + p["hidden"] * p["dim"])
    both = c["contrast"]["symmetric"]
    query = encoder(strong) + encoder(weak) + decoder(strong) + decoder(weak) + (2 if both else 1) * head
    seen = {"view": (weak, strong), "none": (1 + n, 1 + n)}[c["contrast"]["key_mask"]]
    key = sum(encoder(t) + head for t in seen[:2 if both else 1])
    return 3 * query + key


class Contest:
    """macrl and the contenders, on the weights and batches that macrl wrote."""

    def __init__(self, call, folder):
        self.call, self.folder, self.dump = call, folder, call.scratch / "dump"
        self.settings, self.ours, self.others = call.settings, None, []
        self.peak = self.copy = None

    def command(self, *more):
        s = self.settings
        return [self.folder / "bench_cuda", HERE / s["config"], self.dump, *s["shape"], f"train.batch_size={s['batch']}", *more]

    def start(self, seconds):
        """Starts everything; waits only for the files that macrl writes for the others."""
        self.ours = Worker(self.call, "ours", self.command())
        if self.ours.line(seconds) != "written":
            raise RuntimeError("bench_cuda did not write its batches first")
        threads = str(self.settings["threads"])
        for name, more in self.settings["contenders"].items():
            command = [sys.executable, HERE / "macrl_torch.py", self.dump, "--device", self.settings["device"], "--threads", threads]
            env = {"TORCHINDUCTOR_COMPILE_THREADS": threads, "OMP_NUM_THREADS": threads}
            self.others.append(Worker(self.call, name, [*command, *more], env))
        return f"{1 + len(self.others)} processes start."

    def ready(self, seconds):
        """Waits for all of them; one that is late or computes different losses is left out and named."""
        until = time.monotonic() + seconds
        left = lambda: until - time.monotonic()
        try:
            self.ours.start(left())
        except RuntimeError as why:
            # Again without the captured graph: a slower measurement is better than none.
            self.call.not_run("Ours with a captured graph", str(why))
            self.ours = Worker(self.call, "ours", self.command(), {"MACRL_NO_CUDA_GRAPH": "1"})
            self.ours.line(left())
            self.ours.start(left())
        ready = []
        for worker in self.others:
            try:
                worker.start(left())
                worst = max(abs(x - y) / abs(x) for x, y in zip(self.ours.losses, worker.losses))
                if not worst < 0.03:
                    worker.close()
                    raise RuntimeError(f"{worker.name}: first losses {worker.losses}, ours {self.ours.losses}")
                ready.append(worker)
            except RuntimeError as why:
                self.call.not_run(f"Timing {worker.name}", str(why))
        self.others = ready
        names = ", ".join(w.name for w in ready)
        return f"Ready: ours, {names}. First losses agree within 3 %: {self.ours.losses[0]:.4f}."

    def machine(self):
        """Upper bounds of the GPU, measured by PyTorch."""
        n = self.settings["matmul"]
        self.peak = self.others[0].ask(f"matmul {n}")
        name, torch, flops_, copied = self.peak.split("|")
        self.peak, self.copy = float(flops_), float(copied)
        return (f"{name}, PyTorch {torch}: {self.peak / 1e12:.1f} TFLOP/s in a bf16 product of {n} x {n} x {n} random values, "
                f"{self.copy / 1e9:.0f} GB/s in a copy, read and written.")

    def rounds(self):
        """Lets all take turns; returns the table with the rounds that were completed in time."""
        workers, s = [self.ours, *self.others], self.settings
        count, times, waiting = {}, {w: [] for w in workers}, 0.0
        for w in workers:
            count[w] = max(4, round(s["turn"] / (float(w.ask(f"run {s['first']}").split()[0]) / s["first"])))
        for _ in range(s["rounds"]):
            for w in workers:
                answer = [float(x) for x in w.ask(f"run {count[w]}").split()]
                times[w].append(answer[0] / count[w])
                if w is self.ours:
                    waiting = max(waiting, answer[1])
            if self.call.left() < s["behind_rounds"]:
                break
        return self.table(times, waiting)

    def table(self, times, waiting):
        batch, work = self.settings["batch"], flops(self.dump) * self.settings["batch"]
        rows = [f"`{self.settings['config']}`, batch {batch}, {' '.join(self.settings['shape'])}; {len(times[self.ours])} rounds.", "",
                "| by | ms a step (min to max) | images/s | share of the bf16 peak | time, theirs / ours, by round | peak GiB |",
                "| --- | --- | --- | --- | --- | --- |"]
        for w, found in times.items():
            middle, gib = statistics.median(found), float(w.ask("peak")) / 2**30
            ratios = [t / o for t, o in zip(found, times[self.ours])]
            ratio = "" if w is self.ours else f"{statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})"
            share = f"{100 * work / middle / self.peak:.1f} %" if self.peak else ""
            rows.append(f"| {w.name} | {1e3 * middle:.2f} ({1e3 * min(found):.2f} to {1e3 * max(found):.2f}) | {batch / middle:,.0f} | "
                        f"{share} | {ratio} | {gib:.1f} |")
        rows += ["", f"Ours, captured and views made on the GPU: {self.ours.ask('manner')}; waited for batches at most {100 * waiting:.1f} %."]
        return "\n".join(rows)

    def encoders(self):
        """The encoder alone over whole images that lie on the GPU, in bf16."""
        rows = ["| by | batch | ms | images/s |", "| --- | --- | --- | --- |"]
        eager = [w for w in self.others if "eager" in w.name][:1]
        for batch in self.settings["encode"]:
            for w in [self.ours, *eager]:
                seconds = float(w.ask(f"encode {batch} 20")) / 20
                rows.append(f"| {w.name} | {batch} | {1e3 * seconds:.3f} | {batch / seconds:,.0f} |")
        return "\n".join(rows)

    def close(self):
        for worker in filter(None, [self.ours, *self.others]):
            worker.close()
