"""The parts of bench/gpu.sh; see there.  Each part is a function that gives Markdown, and runs whatever the others did."""
import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

from step import PINNED, TINY4

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BASE = [*PINNED, "train.accumulate=1", "train.precision=bf16"]
SHAPES = {
    "ViT-Tiny/4": [],
    "ViT-Tiny/2": ["encoder.patch_size=2"],
    "ViT-Small/4": ["encoder.width=384", "encoder.heads=6"],
}
BATCHES = {"ViT-Tiny/4": [256, 1024, 2048], "ViT-Tiny/2": [256, 1024], "ViT-Small/4": [256, 1024, 2048]}
CONTENDERS = {
    "PyTorch eager": [],
    "torch.compile": ["--compile"],
    "torch.compile, reduce-overhead": ["--compile", "--mode", "reduce-overhead"],
}
START = 240  # seconds a contender may take to start: torch.compile compiles then


class Worker:
    """A process that prints `ready LOSS ...` and then answers lines."""

    def __init__(self, command, log):
        self.command, self.log = command, open(log, "w")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1)

    def line(self, seconds):
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        text = self.process.stdout.readline().strip() if ready else ""
        if not text:
            self.process.kill()
            raise RuntimeError(f"{' '.join(self.command[:2])} ... gave nothing within {seconds} s; see {self.log.name}")
        return text

    def start(self):
        first = self.line(START).split()
        self.losses = [float(x) for x in first[1:]]

    def ask(self, text, seconds=120):
        self.process.stdin.write(text + "\n")
        return self.line(seconds)

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def flops(shape):
    """Multiplications and additions of a step's products for one image: 2 x parameters x tokens of each matrix, three times
    for forward and both gradients, once for the key branch; attention's 4 T^2 D a block likewise."""
    patch, width, depth, ratio = 4, 192, 12, 4
    for pair in SHAPES[shape]:
        key, value = pair.split("=")
        patch, width = (int(value), width) if "patch" in key else (patch, int(value) if "width" in key else width)
    n, values, decoder, decoder_depth = (32 // patch) ** 2, 3 * patch * patch, 96, 2
    strong, weak = 1 + n - round(0.75 * n), 1 + n - round(0.25 * n)

    def stack(t, d, layers):
        return layers * (2 * (4 + 2 * ratio) * d * d * t + 4 * t * t * d)

    def encoder(t):
        return 2 * values * width * (t - 1) + stack(t, width, depth)

    def decode(t):
        return 2 * width * decoder * t + stack(1 + n, decoder, decoder_depth) + 2 * decoder * values * (1 + n)

    head = 2 * (width * 512 + 512 * 128)
    return 3 * (encoder(strong) + encoder(weak) + decode(strong) + decode(weak) + head) + encoder(weak) + head


def checks(a):
    run = subprocess.run([f"{a.bin}/check_cuda"], capture_output=True, text=True, timeout=400)
    open(f"{a.out}/checks.log", "w").write(run.stdout + run.stderr)
    lines = run.stdout.splitlines()
    worst = {}
    for line in lines:
        if line.startswith("pass") or line.startswith("FAIL"):
            name = line[5:].split(":")[0]
            parts = line.split()
            if "(at" in parts:
                error, limit = float(parts[parts.index("(at") - 1]), float(parts[-1].rstrip(")"))
                old = worst.get(name, (0.0, 1.0, 0.0, True))
                fine = old[3] and line.startswith("pass")
                worst[name] = (error, limit, error / limit, fine) if error / limit >= old[2] else (*old[:3], fine)
            else:
                worst[name] = (float("nan"), float("nan"), 0.0, False)
    table = ["| check | largest relative error | tolerance | |", "| --- | --- | --- | --- |"]
    table += [f"| {n} | {e:.1e} | {t:.0e} | {'pass' if ok else '**FAIL**'} |" for n, (e, t, _, ok) in worst.items()]
    summary = next((line for line in lines if "checks passed" in line), f"ended with status {run.returncode}: {run.stderr.strip()[-300:]}")
    return "\n".join([summary + ".", "", *table])


def peak(a):
    import torch

    n = 8192
    x, y = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        x @ y
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        x @ y
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    a.peak = 2 * n**3 / statistics.median(times)
    return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}: bf16 matrix peak {a.peak / 1e12:.0f} TFLOP/s ({n} x {n} x {n}, random values)."


def losses(a):
    """The run's losses in f32 and bf16 on the GPU against f32 on the CPU, from the same seed."""
    rows, settings = [], ["train.batch_size=32", "train.accumulate=1", "encoder.depth=4"]
    with tempfile.TemporaryDirectory() as work:
        make_noise(work)
        curves = {}
        for name, device, more in [("CPU f32", "cpu", []), ("GPU f32", "cuda", []), ("GPU bf16", "cuda", ["train.precision=bf16"])]:
            command = [f"{a.train}", "pretrain", "--config", TINY4, "--data", f"{work}/noise", "--out", f"{work}/{device}{len(more)}", "--device", device]
            for pair in settings + more + ["train.epochs=6", "train.warmup_epochs=1", "evaluate.every_epochs=0", "contrast.bank_size=512"]:
                command += ["--set", pair]
            run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
            open(f"{a.out}/losses-{device}{len(more)}.log", "w").write(run.stderr)
            if run.returncode:
                raise RuntimeError(f"{name}: {run.stderr.strip()[-300:]}")
            lines = [json.loads(line) for line in open(f"{work}/{device}{len(more)}/metrics.jsonl")]
            curves[name] = [line["loss"] for line in lines if line["kind"] == "step"]
        cpu = curves["CPU f32"]
        for name, curve in curves.items():
            worst = max(abs(x - y) / abs(y) for x, y in zip(curve, cpu))
            rows.append(f"| {name} | {len(curve)} | {curve[0]:.4f} | {curve[-1]:.4f} | {worst:.1e} |")
    return "\n".join(["| run | steps | first loss | last loss | largest relative difference to the CPU's |", "| --- | --- | --- | --- | --- |", *rows])


def make_noise(work):
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(256):
        folder = f"{work}/noise/class-{i % 2}"
        os.makedirs(folder, exist_ok=True)
        coarse = generator.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.BICUBIC).save(f"{folder}/{i}.png")


def steps(a):
    table = ["| step | by | ms (min to max) | images/s | share of the bf16 peak | time, theirs / ours (by round) | peak GiB | waiting |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    if a.peak is None:
        peak(a)
    for shape, batches in BATCHES.items():
        for batch in batches:
            if a.only not in f"{shape}, batch {batch}":
                continue
            try:
                found = step_rows(a, shape, batch)
                table += found
                open(f"{a.out}/steps.md", "a").write("\n".join(found) + "\n")  # kept even where a later shape takes too long
            except Exception as why:  # the next shape may do
                table.append(f"| {shape}, batch {batch} | failed: {str(why)[:200]} | | | | | | |")
    return "\n".join(table)


def step_rows(a, shape, batch):
    name = f"{shape.replace('/', '-')}-{batch}"
    with tempfile.TemporaryDirectory() as dump:
        ours = Worker([f"{a.bin}/bench_cuda", TINY4, dump, *BASE, *SHAPES[shape], f"train.batch_size={batch}"], f"{a.out}/{name}-ours.log")
        ours.start()  # writes what the others read
        workers, notes = {"macrl": ours}, []
        for contender in a.contenders:
            more = CONTENDERS[contender]
            command = [sys.executable, f"{HERE}/macrl_torch.py", dump, "--device", "cuda", "--bf16", "--threads", "4", *more]
            worker = Worker(command, f"{a.out}/{name}-{contender.split()[-1]}.log")
            try:
                worker.start()
                worst = max(abs(x - y) / abs(x) for x, y in zip(ours.losses, worker.losses))
                if worst > 0.03:
                    raise RuntimeError(f"first losses {worker.losses}, ours {ours.losses}")
                workers[contender] = worker
            except Exception as why:
                worker.close()
                notes.append(f"| {shape}, batch {batch} | {contender} | failed: {str(why)[:160]} | | | | | |")
        count, times, waiting = {}, {w: [] for w in workers}, 0.0
        for w, worker in workers.items():
            count[w] = max(4, round(a.seconds / (float(worker.ask("run 8").split()[0]) / 8)))
        for _ in range(a.rounds):
            for w, worker in workers.items():
                answer = [float(x) for x in worker.ask(f"run {count[w]}").split()]
                times[w].append(answer[0] / count[w])
                if w == "macrl":
                    waiting = max(waiting, answer[1])
        rows = []
        for w, worker in workers.items():
            middle, gib = statistics.median(times[w]), float(worker.ask("peak")) / 2**30
            ratios = [t / o for t, o in zip(times[w], times["macrl"])]
            ratio = "" if w == "macrl" else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            share = f"{100 * flops(shape) * batch / middle / a.peak:.1f} %" if a.peak else ""
            rows.append(f"| {shape}, batch {batch} | {w} | {1e3 * middle:.2f} ({1e3 * min(times[w]):.2f} to {1e3 * max(times[w]):.2f}) | "
                        f"{batch / middle:,.0f} | {share} | {ratio} | {gib:.1f} | {f'{100 * waiting:.1f} %' if w == 'macrl' else ''} |")
        rows.append(f"| | captured, views on the GPU: {ours.ask('manner')} | | | | | | |")
        for worker in workers.values():
            worker.close()
    return rows + notes


def inference(a):
    """The encoder over whole images that lie on the GPU."""
    table = ["| encoder, batch | by | ms | images/s |", "| --- | --- | --- | --- |"]
    for precision in ["f32", "bf16"]:
        with tempfile.TemporaryDirectory() as dump:
            base = ["train.accumulate=1", f"train.precision={precision}", "train.batch_size=64"]
            workers = {"macrl": Worker([f"{a.bin}/bench_cuda", TINY4, dump, *base], f"{a.out}/encode-{precision}-ours.log")}
            workers["macrl"].start()
            for contender, more in list(CONTENDERS.items())[:2]:
                command = [sys.executable, f"{HERE}/macrl_torch.py", dump, "--device", "cuda", *more, *(["--bf16"] if precision == "bf16" else [])]
                workers[contender] = Worker(command, f"{a.out}/encode-{precision}-{contender.split()[-1]}.log")
            for name, worker in workers.items():
                try:
                    if name != "macrl":
                        worker.start()
                    for batch in [1, 64, 1024]:
                        seconds = statistics.median(float(worker.ask(f"encode {batch} 30", 200)) / 30 for _ in range(a.rounds))
                        table.append(f"| ViT-Tiny/4 {precision}, {batch} | {name} | {1e3 * seconds:.3f} | {batch / seconds:,.0f} |")
                except Exception as why:
                    table.append(f"| ViT-Tiny/4 {precision} | {name} | failed: {str(why)[:160]} | |")
                worker.close()
    return "\n".join(table)


def onnx(a):
    """ONNX Runtime on CUDA, in f32 and f16, on a graph exported beforehand (--bundle)."""
    import numpy as np
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return f"Not run: this onnxruntime ({ort.__version__}) has no CUDA provider."
    table = ["| graph, batch | ms | images/s |", "| --- | --- | --- |"]
    for name, dtype in [("model.onnx", np.float32), ("model_fp16.onnx", np.float16)]:
        session = ort.InferenceSession(f"{a.bundle}/onnx/{name}", providers=[("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"})])
        given = session.get_inputs()[0]
        dtype = np.float16 if "float16" in given.type else np.float32
        for batch in [1, 64, 1024]:
            binding = session.io_binding()
            pixels = np.random.default_rng(0).standard_normal((batch, *given.shape[1:])).astype(dtype)
            binding.bind_ortvalue_input(given.name, ort.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0))
            for output in session.get_outputs():
                binding.bind_output(output.name, "cuda")
            times = []
            for i in range(3 + 10 * a.rounds):
                start = time.perf_counter()
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
                times.append(time.perf_counter() - start)
            seconds = statistics.median(times[3:])
            table.append(f"| {name}, {batch} | {1e3 * seconds:.3f} | {batch / seconds:,.0f} |")
    return "\n".join(table)


PARTS = {"checks": ("Kernels against the CPU", checks), "peak": ("The machine", peak), "losses": ("A run's losses", losses),
         "steps": ("Training step", steps), "inference": ("The encoder", inference), "onnx": ("ONNX Runtime on CUDA", onnx)}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--bin", default=f"{ROOT}/target/release/examples")
    a.add_argument("--train", default=None, help="macrl-train; beside or above --bin where not given")
    a.add_argument("--out", default="gpu-results")
    a.add_argument("--bundle", default=os.environ.get("GPU_BUNDLE", "models/pretrained/cifar10"))
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--seconds", type=float, default=1.5, help="each contender's turn")
    a.add_argument("--only", default=os.environ.get("GPU_ONLY", ""), help="only steps whose name holds this, for example 'ViT-Tiny/4, batch 1024'")
    a.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    a.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    a = a.parse_args()
    os.chdir(ROOT)
    os.makedirs(a.out, exist_ok=True)
    a.peak = None
    a.train = a.train or next((p for p in [f"{a.bin}/macrl-train", f"{a.bin}/../macrl-train"] if os.path.exists(p)), "macrl-train")
    text = ["## On a GPU", ""]
    for part in a.parts:
        title, function = PARTS[part]
        start = time.time()
        try:
            body = function(a)
        except Exception as why:  # the other parts are worth having
            traceback.print_exc()
            body = f"Failed: {type(why).__name__}: {str(why)[:300]}"
        text += [f"### {title}", "", body, "", f"<!-- {part}: {time.time() - start:.0f} s -->", ""]
        open(f"{a.out}/results.md", "w").write("\n".join(text))
        print("\n".join(text[-6:]), flush=True)


if __name__ == "__main__":
    main()
