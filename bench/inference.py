#!/usr/bin/env python3
"""Inference: the exported graph in ONNX Runtime compared with the same ViT in PyTorch eager.

    cargo build --release --locked -p macrl-export --example inference
    python bench/inference.py runs/demo/bundle --rust target/release/examples/inference

PyTorch's network is built from the bundle's config.json and model.safetensors; outputs must agree to 1e-4 before
anything is timed.  Every contender is a process of its own (threads that spin in one would slow the others), called
in turn, A B C A B C, with a pause in between; the table shows medians over the rounds.

Needs: numpy, onnxruntime, torch, safetensors.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

AGREEMENT = 1e-4


def pixels(batch, size):
    return np.random.default_rng(batch).standard_normal((batch, 3, size, size), dtype=np.float32)


def pytorch(bundle, threads):
    """The bundle's network as timm writes a ViT, with PyTorch's fused attention."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    with open(f"{bundle}/config.json") as file:
        config = json.load(file)
    w = load_file(f"{bundle}/model.safetensors")
    heads, eps, patch = config["num_attention_heads"], config["layer_norm_eps"], config["patch_size"]
    depth, mean = config["num_hidden_layers"], config["pooling"] == "mean"

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def attention(x, name):
        b, t, d = x.shape
        q, k, v = linear(x, f"{name}.qkv").reshape(b, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return linear(x.transpose(1, 2).reshape(b, t, d), f"{name}.proj")

    def forward(x):
        x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], patch).flatten(2).transpose(1, 2)
        x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
        for b in (f"blocks.{i}" for i in range(depth)):
            x = x + attention(norm(x, f"{b}.norm1"), f"{b}.attn")
            x = x + linear(F.gelu(linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
        x = norm(x, "norm")
        return x, x[:, 1:].mean(1) if mean else x[:, 0]

    def run(x):
        with torch.inference_mode():
            return [y.numpy() for y in forward(torch.from_numpy(x))]

    return run


def onnx_runtime(bundle, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(f"{bundle}/onnx/model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["last_hidden_state", "pooler_output"], {"pixel_values": x})


def worker(pipe, make, bundle, threads, size):
    """Answers ("outputs", batch) with arrays, ("time", batch, calls) with seconds per call, "memory" with MB."""
    run = make(bundle, threads)
    pipe.send("ready")
    while (message := pipe.recv()) != "stop":
        if message == "memory":
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        elif message[0] == "outputs":
            pipe.send(run(pixels(message[1], size)))
        else:
            _, batch, calls = message
            x = pixels(batch, size)
            run(x)
            start = time.perf_counter()
            for _ in range(calls):
                run(x)
            pipe.send((time.perf_counter() - start) / calls)


class Python:
    def __init__(self, make, bundle, threads, size):
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        context.Process(target=worker, args=(child, make, bundle, threads, size), daemon=True).start()
        self.pipe.recv()

    def ask(self, message):
        self.pipe.send(message)
        return self.pipe.recv()

    def outputs(self, batch):
        return self.ask(("outputs", batch))

    def time(self, batch, calls):
        return self.ask(("time", batch, calls))

    def memory(self):
        return self.ask("memory")

    def stop(self):
        self.pipe.send("stop")


class Rust:
    """export/examples/inference.rs: the same protocol over lines and raw floats."""

    def __init__(self, program, bundle, threads, size):
        command = [program, f"{bundle}/onnx/model.onnx", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.size = size

    def ask(self, line, payload=b""):
        self.process.stdin.write(line.encode() + b"\n" + payload)
        self.process.stdin.flush()

    def outputs(self, batch):
        x = pixels(batch, self.size)
        self.ask(f"outputs {batch}", x.tobytes())
        counts = [int(n) for n in self.process.stdout.readline().split()]
        return [np.frombuffer(self.process.stdout.read(4 * n), np.float32) for n in counts]

    def time(self, batch, calls):
        self.ask(f"time {batch} {calls}", pixels(batch, self.size).tobytes())
        return float(self.process.stdout.readline())

    def memory(self):
        self.ask("memory")
        return float(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def check_agreement(contenders, batch):
    reference = contenders["PyTorch eager"].outputs(batch)
    for name, contender in contenders.items():
        outputs = contender.outputs(batch)
        difference = max(float(np.abs(a.ravel() - b.ravel()).max()) for a, b in zip(reference, outputs))
        if not difference <= AGREEMENT:
            sys.exit(f"{name} differs from PyTorch by {difference:.2e} at batch {batch}: nothing was timed")
        print(f"{name}: within {difference:.1e} of PyTorch at batch {batch}")


def measure(contenders, batch, rounds, seconds):
    """Seconds per call, a list per contender; each round calls all of them in turn for about `seconds`."""
    calls = {name: max(1, round(seconds / c.time(batch, 1))) for name, c in contenders.items()}
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].append(contender.time(batch, calls[name]))
            time.sleep(0.1)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a folder written by `macrl-export bundle`")
    parser.add_argument("--rust", help="the built example export/examples/inference.rs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per contender and round")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    a = parser.parse_args()
    with open(f"{a.bundle}/config.json") as file:
        config = json.load(file)
    size = config["image_size"]
    contenders = {name: Python(make, a.bundle, a.threads, size)
                  for name, make in [("PyTorch eager", pytorch), ("ONNX Runtime, Python", onnx_runtime)]}
    if a.rust:
        contenders["ONNX Runtime, Rust"] = Rust(a.rust, a.bundle, a.threads, size)
    for batch in a.batch:
        check_agreement(contenders, batch)
    busy = os.getloadavg()[0]
    print(f"\nViT {config['hidden_size']} x {config['num_hidden_layers']}, patch {config['patch_size']}, "
          f"{size} x {size} pixels, f32; {a.threads} threads of {os.cpu_count()} ({platform.machine()}); "
          f"{a.rounds} interleaved rounds, medians; load {busy:.1f} before (other work distorts the ratios)\n")
    print("| batch | | ms per batch | images/s | time / PyTorch | (from the fastest rounds) | peak memory, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for batch in a.batch:
        times = measure(contenders, batch, a.rounds, a.seconds)
        torch = times["PyTorch eager"]
        for name, t in times.items():
            median, ratio = statistics.median(t), statistics.median(t) / statistics.median(torch)
            print(f"| {batch} | {name} | {1e3 * median:.2f} | {batch / median:.0f} | {ratio:.2f} | "
                  f"{min(t) / min(torch):.2f} | {contenders[name].memory():.0f} |", flush=True)
    for contender in contenders.values():
        contender.stop()


if __name__ == "__main__":
    main()
