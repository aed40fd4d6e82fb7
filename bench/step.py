"""One MACRL training step, compared with the same step in PyTorch; both take turns in one run.

    python bench/step.py --rounds 5

Our weights and batches are loaded into PyTorch, and the first losses must agree to 1e-4 before anything is timed.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile

BATCHES = 4
HERE = os.path.dirname(os.path.abspath(__file__))
# These values decide the arithmetic, so they are fixed here; the defaults may change.
TINY4 = "configs/cifar10.toml"
PINNED = [
    "views.strong.mask_ratio=0.75", "views.weak.mask_ratio=0.25", "reconstruction.loss_on=masked", "contrast.symmetric=false",
    "contrast.key_mask=view", "train.optimizer=adamw",
]
SHAPES = {
    "ViT-Tiny/4, 32 x 32, batch 64": (TINY4, [*PINNED, "train.batch_size=64", "train.accumulate=1"]),
    "ViT-Tiny/4, 32 x 32, batch 256": (TINY4, [*PINNED, "train.batch_size=256", "train.accumulate=1"]),
    "the demo's, batch 64": ("configs/demo.toml", []),
    # Without a warm-up: in the first steps of a warm-up Muon would change almost nothing.
    "4 blocks of 192, Muon, whole keys, batch 64": ("configs/cifar10-cpu.toml", [
        "train.optimizer=muon", "contrast.key_mask=none", "views.strong.mask_ratio=0.625", "views.weak.mask_ratio=0.625",
        "train.warmup_epochs=0"]),
}


class Worker:
    def __init__(self, command, threads):
        env = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        first = self.process.stdout.readline().split()
        assert first and first[0] == "ready", f"{command} did not start"
        self.losses = [float(x) for x in first[1:]]

    def run(self, steps):
        self.process.stdin.write(f"run {steps}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def peak_mib(self):
        status = open(f"/proc/{self.process.pid}/status").read()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(binary, config, overrides, threads, rounds, seconds, contenders):
    with tempfile.TemporaryDirectory() as dump:
        workers = {"macrl": Worker([binary, config, dump, str(BATCHES), *overrides], threads)}
        for name in contenders:
            command = [sys.executable, f"{HERE}/macrl_torch.py", dump, "--threads", str(threads)]
            workers[name] = Worker(command + (["--compile"] if "compile" in name else []), threads)
        ours = workers["macrl"].losses
        for name, worker in workers.items():
            worst = max(abs(a - b) for a, b in zip(ours, worker.losses))
            assert worst < 1e-4, f"{name}: losses {worker.losses}, ours {ours}"
        steps = {name: max(1, round(seconds / w.run(2) * 2)) for name, w in workers.items()}
        times = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(worker.run(steps[name]) / steps[name])
        peaks = {name: w.peak_mib() for name, w in workers.items()}
        for worker in workers.values():
            worker.close()
        return times, peaks


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--binary", default="target/release/examples/bench_step")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--seconds", type=float, default=4.0, help="each contender's turn")
    a.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    a.add_argument("--only", default="", help="only shapes whose name holds this")
    a = a.parse_args()
    contenders = ["PyTorch eager"] + ([] if a.no_compile else ["PyTorch torch.compile"])
    print("| step | by | median ms (min to max) | images/s | time, ours / theirs (by round) | peak MiB | memory, ours / theirs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for shape, (config, overrides) in SHAPES.items():
        if a.only not in shape:
            continue
        times, peaks = measure(a.binary, config, overrides, a.threads, a.rounds, a.seconds, contenders)
        batch = next((int(o.split("=")[1]) for o in overrides if o.startswith("train.batch_size")), 64)
        for name, seconds in times.items():
            ratios = [o / t for o, t in zip(times["macrl"], seconds)]
            middle = statistics.median(seconds)
            compared = "" if name == "macrl" else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            memory = "" if name == "macrl" else f"{peaks['macrl'] / peaks[name]:.2f}"
            print(f"| {shape} | {name} | {1e3 * middle:.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f}) | "
                  f"{batch / middle:.0f} | {compared} | {peaks[name]:.0f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
