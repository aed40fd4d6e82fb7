"""MACRL's training step in PyTorch, on the weights and batches that `bench_step` or `bench_cuda` wrote: the comparison in
bench/step.py and bench/lease.

Run as a worker it prints `ready LOSS ...` and answers `run N` with seconds, as bench_step does; `peak` with the most
bytes reserved on the GPU, `encode BATCH N` with the seconds of N passes of the encoder over BATCH whole images, `matmul N`
with `DEVICE|VERSION|FLOP/S|BYTES/S` of a bf16 product of N x N x N and of a copy.

Precisions: f32; --bf16, PyTorch's autocast, which keeps residuals and norms in f32; --activations bf16, bf16 throughout
as ours are, from f32 master weights.
"""
import argparse
import math
import sys
import time
import tomllib

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


def positions(grid, width):
    quarter = width // 4
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    rows = torch.arange(grid, dtype=torch.float64)
    column, row = rows.repeat(grid), rows.repeat_interleave(grid)
    parts = [f(c[:, None] * omega) for c in (column, row) for f in (torch.sin, torch.cos)]
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), torch.cat(parts, 1)]).float()


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """timm's pre-norm block."""

    def __init__(self, width, heads, ratio):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, ratio * width), "fc2": nn.Linear(ratio * width, width)})

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        e = c["encoder"]
        d, p = e["width"], e["patch_size"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, d, p, p)})  # holds timm's shape; used as a matrix
        self.blocks = nn.ModuleList(Block(d, e["heads"], e["mlp_ratio"]) for _ in range(e["depth"]))
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.register_buffer("positions", positions(e["image_size"] // p, d), persistent=False)

    def forward(self, patches, kept):
        proj = self.patch_embed["proj"]
        x = F.linear(patches, proj.weight.flatten(1), proj.bias) + self.positions[1:][kept]
        cls = (self.cls_token + self.positions[:1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        e, d = c["encoder"], c["decoder"]
        self.decoder_embed = nn.Linear(e["width"], d["width"])
        self.mask_token = nn.Parameter(torch.zeros(1, 1, d["width"]))
        self.decoder_blocks = nn.ModuleList(Block(d["width"], d["heads"], 4) for _ in range(d["depth"]))
        self.decoder_norm = nn.LayerNorm(d["width"], eps=1e-6)
        self.decoder_pred = nn.Linear(d["width"], 3 * e["patch_size"] ** 2)
        self.register_buffer("positions", positions(e["image_size"] // e["patch_size"], d["width"]), persistent=False)

    def forward(self, tokens, kept):
        x = self.decoder_embed(tokens)
        b, n, w = len(x), len(self.positions) - 1, x.shape[-1]
        index = kept[:, :, None].expand(-1, -1, w)
        full = self.mask_token.to(x.dtype).expand(b, n, w).scatter(1, index, x[:, 1:])
        x = torch.cat([x[:, :1], full], 1) + self.positions
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


class Projector(nn.Module):
    def __init__(self, c):
        super().__init__()
        p = c["projector"]
        self.projector = nn.ModuleDict({"fc1": nn.Linear(c["encoder"]["width"], p["hidden"]), "fc2": nn.Linear(p["hidden"], p["dim"])})

    def forward(self, x):
        return F.normalize(self.projector["fc2"](F.gelu(self.projector["fc1"](x))), dim=1)


class Query(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.encoder, self.decoder, self.head = Encoder(c), Decoder(c), Projector(c)
        self.mean = c["evaluate"]["pooling"] == "mean"
        self.masked = c["reconstruction"]["loss_on"] == "masked"
        self.symmetric = c["contrast"]["symmetric"]

    def pool(self, tokens):
        return tokens[:, 1:].mean(1) if self.mean else tokens[:, 0]

    def reconstruct(self, tokens, view):
        error = (self.decoder(tokens, view["kept"]) - view["target"]).abs()
        if not self.masked:
            return error.mean()
        mask = torch.ones(error.shape[:2], device=error.device).scatter(1, view["kept"], 0.0)  # 1 = removed
        return (error * mask[:, :, None]).sum() / (mask.sum() * error.shape[2])

    def forward(self, strong, weak):
        z_strong = self.encoder(strong["patches"], strong["kept"])
        z_weak = self.encoder(weak["patches"], weak["kept"])
        queries = [self.head(self.pool(z)) for z in ([z_strong, z_weak] if self.symmetric else [z_strong])]
        return queries, 0.5 * (self.reconstruct(z_strong, strong) + self.reconstruct(z_weak, weak))


class Muon:
    """Momentum, orthogonalised by five Newton-Schulz steps in stacks of one shape; qkv as three matrices."""

    def __init__(self, params, train):
        self.params, self.decay, self.momentum = params, train["weight_decay"], train["muon_momentum"]
        self.buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, lr):
        shapes = {}
        for p, b in zip(self.params, self.buffers):
            b.lerp_(p.grad, 1 - self.momentum)
            u, parts = p.grad.lerp(b, self.momentum), 3 if p.shape[0] == 3 * p.shape[1] else 1
            for w, g in zip(p.chunk(parts), u.chunk(parts)):
                shapes.setdefault(w.shape, []).append((w, g))
        for shape, pairs in shapes.items():
            x, tall = torch.stack([g for _, g in pairs]), shape[0] > shape[1]
            x = x.mT if tall else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.mT if tall else x
            for (w, _), u in zip(pairs, x):
                w.mul_(1 - lr * self.decay).add_(u, alpha=-lr * max(1, shape[0] / shape[1]) ** 0.5)


class Step:
    """One whole optimiser step; gives the numbers of `macrl-train pretrain` with momentum keys."""

    def __init__(self, dump, compiled, device="cpu", bf16=False, mode=None, throughout=False, backend="inductor"):
        self.device, self.bf16, self.throughout = device, bf16, throughout
        with safe_open(f"{dump}/state.safetensors", "pt") as f:
            self.c = c = tomllib.loads(f.metadata()["config"])
            weights = {k: f.get_tensor(k) for k in f.keys()}
        self.query, self.key_encoder, self.key_head = Query(c), Encoder(c), Projector(c)
        pick = lambda prefix: {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix)}
        self.query.encoder.load_state_dict(pick("encoder."))
        self.query.decoder.load_state_dict({k: v for k, v in weights.items() if k.startswith(("decoder", "mask"))})
        self.query.head.load_state_dict({k: v for k, v in weights.items() if k.startswith("projector.")})
        self.key_encoder.load_state_dict(pick("key.encoder."))
        self.key_head.load_state_dict(pick("key."), strict=False)
        for module in self.query, self.key_encoder, self.key_head:
            module.to(device)
        t = c["train"]
        is_muons = lambda n, p: t["optimizer"] == "muon" and "blocks." in n and p.ndim == 2
        self.muon = Muon([p for n, p in self.query.named_parameters() if is_muons(n, p)], t)
        matrices = [p for n, p in self.query.named_parameters() if p.ndim > 1 and not n.endswith("token") and not is_muons(n, p)]
        others = [p for n, p in self.query.named_parameters() if p.ndim <= 1 or n.endswith("token")]
        groups = [{"params": matrices, "weight_decay": t["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
        self.peak = t["lr"] * t["batch_size"] / 256
        self.optimizer = torch.optim.AdamW(groups, lr=self.peak, betas=t["betas"], fused=True)
        self.parameters = list(self.query.parameters())
        ema = dict(self.query.encoder.named_parameters())
        head = dict(self.query.head.named_parameters())
        self.keys = list(self.key_encoder.parameters()) + list(self.key_head.parameters())
        self.followed = [ema[n] for n, _ in self.key_encoder.named_parameters()] + [head[n] for n, _ in self.key_head.named_parameters()]
        self.forward = torch.compile(self.losses, mode=mode, backend=backend) if compiled else self.losses
        flat = load_file(f"{dump}/batches.safetensors", device=device)
        self.all = torch.arange((c["encoder"]["image_size"] // c["encoder"]["patch_size"]) ** 2, device=device)
        self.whole = c["contrast"]["key_mask"] == "none"
        names = ("kept", "patches", "target", "whole")
        view = lambda i, v: {k: x.long() if k == "kept" else x for k in names if (x := flat.get(f"{i}.{v}.{k}")) is not None}
        count = sum(name.endswith(".images") for name in flat)
        self.batches = [(flat[f"{i}.images"].long(), view(i, "strong"), view(i, "weak")) for i in range(count)]
        size = c["contrast"]["bank_size"]
        self.bank = torch.zeros(size, c["projector"]["dim"], device=device)
        self.bank_images = torch.full((size,), -1, device=device)
        # Compiled or on a GPU, the whole bank is used from the start with empty positions masked, so that all steps have one shape.
        self.next, self.filled, self.step = 0, size if compiled or device != "cpu" else 0, 0

    def losses(self, strong, weak, images, bank, bank_images):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.both(strong, weak, images, bank, bank_images)

    def call(self, module, *given):
        """The module; a bf16 copy of its f32 weights if everything runs in bf16."""
        if not self.throughout:
            return module(*given)
        half = {name: p.bfloat16() for name, p in [*module.named_parameters(), *module.named_buffers()]}
        return torch.func.functional_call(module, half, given)

    def both(self, strong, weak, images, bank, bank_images):
        if self.throughout:
            narrow = lambda v: v | {name: v[name].bfloat16() for name in ("patches", "whole") if name in v}
            strong, weak, bank = narrow(strong), narrow(weak), bank.bfloat16()
        queries, reconstruction = self.call(self.query, strong, weak)
        with torch.no_grad():
            key = lambda v: self.call(self.key_head, self.query.pool(self.call(self.key_encoder, *self.seen_by_keys(v))))
            keys = [key(v) for v in (weak, strong)[: len(queries)]]
        each = [self.contrast(q, k, images, bank, bank_images) for q, k in zip(queries, keys)]
        contrast = sum(each) / len(each)
        return self.c["contrast"]["weight"] * contrast + self.c["reconstruction"]["weight"] * reconstruction, keys[0]

    def seen_by_keys(self, view):
        if self.whole:
            return view["whole"], self.all.expand(len(view["whole"]), -1)
        return view["patches"], view["kept"]

    def contrast(self, q, k, images, bank, bank_images):
        logits = torch.cat([q @ k.T, q @ bank.T], 1) / self.c["contrast"]["temperature"]
        others = ~torch.eye(len(images), dtype=torch.bool, device=images.device)
        batch = (images[:, None] == images[None]) & others
        past = (images[:, None] == bank_images[None]) | (bank_images[None] < 0)  # an own key, or an empty place
        logits = logits.masked_fill(torch.cat([batch, past], 1), -math.inf)
        return F.cross_entropy(logits.float(), torch.arange(len(images), device=logits.device))

    def schedule(self):
        # 1,000 steps an epoch, as bench_step has it
        t = self.c["train"]
        total, warmup = 1000 * t["epochs"], 1000 * t["warmup_epochs"]
        at = self.step + 1
        cosine = lambda x: 0.5 * (1 + math.cos(math.pi * x))
        rate = at / warmup if at < warmup else cosine(max(0.0, self.step - warmup) / (total - warmup))
        return rate, 1 - (1 - self.c["contrast"]["momentum"]) * cosine(self.step / total)

    def run(self, count):
        losses = []
        for i in range(count):
            images, strong, weak = self.batches[i % len(self.batches)]
            rate, momentum = self.schedule()
            for group in self.optimizer.param_groups:
                group["lr"] = self.peak * rate
            loss, k = self.forward(strong, weak, images, self.bank[: self.filled], self.bank_images[: self.filled])
            for p in self.parameters:  # the optimiser's zero_grad would leave Muon's
                p.grad = None
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, self.c["train"]["clip_norm"])
            self.optimizer.step()
            self.muon.step(self.c["train"]["muon_lr"] * rate)
            torch._foreach_lerp_(self.keys, self.followed, 1 - momentum)
            self.push(k, images)
            self.step += 1
            losses.append(loss.detach().clone())
        return [float(loss) for loss in losses]

    @torch.no_grad()
    def encode(self, batch, count, compiled):
        e = self.c["encoder"]
        n, values = (e["image_size"] // e["patch_size"]) ** 2, 3 * e["patch_size"] ** 2
        patches = torch.randn(batch, n, values, device=self.device)
        kept = torch.arange(n, device=self.device).expand(batch, n).contiguous()
        encoder = torch.compile(self.query.encoder) if compiled else self.query.encoder

        def run(times):
            for _ in range(times):
                with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                    self.query.pool(encoder(patches, kept))
            synchronize(self.device)

        run(3)
        start = time.perf_counter()
        run(count)
        return time.perf_counter() - start

    def push(self, k, images):
        size = len(self.bank)
        place = (self.next + torch.arange(len(k), device=k.device)) % size
        self.bank[place], self.bank_images[place] = k.to(self.bank.dtype), images
        self.next = (self.next + len(k)) % size
        self.filled = min(size, self.filled + len(k))


def synchronize(device):
    if device != "cpu":
        torch.cuda.synchronize()


def middle(device, work):
    """Seconds of one call, from ten."""
    times = []
    for _ in range(13):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[3:])[5]


@torch.no_grad()
def matmul(device, n):
    """Upper bounds of the machine: a product of random matrices, and a copy of 1 GiB (read and written)."""
    x, y = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * n**3 / middle(device, lambda: x @ y)
    a = torch.zeros(2**30 if device != "cpu" else 2**22, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    copied = 2 * len(a) / middle(device, lambda: b.copy_(a))
    name = torch.cuda.get_device_name() if device != "cpu" else "this processor"
    return f"{name}|{torch.__version__}|{flops}|{copied}"


def main():
    a = argparse.ArgumentParser()
    a.add_argument("dump")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--compile", action="store_true")
    a.add_argument("--mode", default=None, help="of torch.compile, for example reduce-overhead (CUDA graphs)")
    a.add_argument("--backend", default="inductor", help="of torch.compile")
    a.add_argument("--device", default="cpu")
    a.add_argument("--bf16", action="store_true")
    a.add_argument("--activations", choices=["bf16"], help="bf16 throughout")
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    step = Step(a.dump, a.compile, a.device, a.bf16, a.mode, a.activations == "bf16", a.backend)
    with torch.no_grad():
        for p in step.keys:
            p.requires_grad_(False)
    losses = step.run(len(step.batches))
    if a.device != "cpu":
        step.run(20)  # as bench_cuda does before it is ready
    print("ready", *(f"{x:.7f}" for x in losses), flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "peak":
            print(torch.cuda.max_memory_reserved() if a.device != "cpu" else 0, flush=True)
            continue
        if word == "matmul":
            print(matmul(a.device, int(numbers[0])), flush=True)
            continue
        start = time.perf_counter()
        if word == "encode":
            seconds = step.encode(*map(int, numbers), a.compile)
        else:
            step.run(int(numbers[0]))
            seconds = time.perf_counter() - start
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
