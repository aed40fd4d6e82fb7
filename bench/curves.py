"""Time and peak memory of a MACRL training step by batch, tokens, width and threads.

    python bench/curves.py --plot docs/cost-curves.svg

The base is configs/cifar10.toml (ViT-Tiny/4, 64 tokens an image, width 192) on all threads; each other curve changes
one thing.  Every point is the median of the rounds.
"""
import argparse
import os
import statistics
import tempfile

from step import PINNED, TINY4, Worker

CURVES = {  # name: (overrides, threads or None for all)
    "64 tokens, width 192": ([], None),
    "1 thread": ([], 1),
    "256 tokens": (["encoder.patch_size=2"], None),
    "width 384": (["encoder.width=384", "encoder.heads=6"], None),
}
COLOURS = ["#1f5fbf", "#7a7f87", "#c2410c", "#15803d"]


def point(binary, batch, overrides, threads, rounds, seconds):
    """(seconds a step, peak MiB): the median of the rounds, in a process of its own so that the peak is its own."""
    size = [*PINNED, f"train.batch_size={batch}", "contrast.bank_size=4096"]
    with tempfile.TemporaryDirectory() as dump:
        worker = Worker([binary, TINY4, dump, "1", *size, *overrides], threads)
        times = [worker.run(1)]
        steps = max(1, min(50, round(seconds / times[0])))
        times += [worker.run(steps) / steps for _ in range(rounds - 1)]
        peak = worker.peak_mib()
        worker.close()
    return statistics.median(times), peak


def plot(table, path):
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "macrl", "axes.spines.top": False,
                         "axes.spines.right": False, "axes.grid": True, "grid.color": "#e5e7eb"})
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9.5, 3.8))
    batches = sorted(table)
    for colour, name in zip(COLOURS, CURVES):
        time.plot(batches, [b / table[b][name][0] for b in batches], "o-", ms=4, color=colour, label=name)
        memory.plot(batches, [table[b][name][1] for b in batches], "o-", ms=4, color=colour, label=name)
    for axes, title in (time, "images/s"), (memory, "peak memory, MiB"):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(batches, [str(b) for b in batches])
        axes.set_xlabel("batch")
        axes.set_title(title, loc="left", fontsize=10)
    time.set_yticks([10, 20, 50, 100], ["10", "20", "50", "100"])
    memory.set_yticks([200, 500, 1000, 2000, 5000, 10000], ["200", "500", "1,000", "2,000", "5,000", "10,000"])
    memory.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--binary", default="target/release/examples/bench_step")
    a.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    a.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--seconds", type=float, default=2.0, help="each round, where a step is shorter")
    a.add_argument("--plot", help="an SVG file to draw (needs matplotlib)")
    a = a.parse_args()
    print("| batch | " + " | ".join(f"{name}: ms, images/s, MiB" for name in CURVES) + " |")
    print("| --- |" + " --- |" * len(CURVES))
    table = {}
    for batch in a.batches:
        table[batch] = {name: point(a.binary, batch, overrides, own or a.threads, a.rounds, a.seconds)
                        for name, (overrides, own) in CURVES.items()}
        cells = [f"{1e3 * s:.0f}, {batch / s:.1f}, {m:.0f}" for s, m in table[batch].values()]
        print(f"| {batch} | " + " | ".join(cells) + " |", flush=True)
    if a.plot:
        plot(table, a.plot)


if __name__ == "__main__":
    main()
