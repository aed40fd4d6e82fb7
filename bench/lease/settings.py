"""Settings of the calls, and the same in a size that the host's stand-in for a GPU can run."""
# These values decide the arithmetic of the timed step, so they are fixed here; the configuration's may change.
STEP = [
    "views.strong.mask_ratio=0.5", "views.weak.mask_ratio=0.25", "contrast.symmetric=true", "reconstruction.loss_on=masked",
    "contrast.key_mask=view", "train.optimizer=adamw", "train.accumulate=1", "train.precision=bf16",
]
# The recipe that learns most from the same arithmetic (docs/results.md): Muon, keys of whole views, both queries of 24 patches.
RECIPE = [
    "train.precision=bf16", "train.optimizer=muon", "train.lr=2e-3", "contrast.symmetric=true", "contrast.key_mask=none",
    "views.strong.mask_ratio=0.625", "views.weak.mask_ratio=0.625",
]
EAGER, COMPILED, HALF = "PyTorch eager", "torch.compile", ["--activations", "bf16"]

REAL = {
    # Seconds of each call, from its start to its last file.
    "evidence_seconds": 330, "encoder_seconds": 420, "state_seconds": 30,
    # The step: ViT-Tiny/4, both branches.
    "config": "configs/cifar10.toml", "shape": STEP, "batch": 1024, "device": "cuda", "threads": 4,
    "contenders": {
        EAGER: ["--bf16"], COMPILED: ["--bf16", "--compile"], f"{COMPILED}, bf16 throughout": [*HALF, "--compile"],
        f"{COMPILED}, CUDA graphs": ["--bf16", "--compile", "--mode", "reduce-overhead"],
    },
    # Checks: the limit of each, and the time at which all must end; the contenders compile meanwhile and have some more time.
    "checks": [None], "check_seconds": 40, "checks_until": 165, "written_seconds": 40, "ready_until": 205,
    # Seconds of a turn; turns stop if less than `behind_rounds` is left for the later parts.
    "rounds": 5, "turn": 1.5, "first": 8, "behind_rounds": 80, "matmul": 8192, "encode": [1, 64, 1024],
    "trial_epochs": 4, "trial_seconds": 45, "profile_seconds": 60,
    # The encoder: the first of these recipes whose trial succeeds.
    "recipe_config": "configs/cifar10.toml", "recipes": [RECIPE, ["train.precision=bf16"]], "limit": 0,
    "warmup": 0.05, "knn_every": 20, "packing_seconds": 34, "margin": 0.93, "most_epochs": 1000,
    # Bytes of a part of the state: four parts, the archive and the logs may be returned.
    "part": 15 << 20,
}

SMALL = [
    "encoder.image_size=16", "encoder.width=64", "encoder.depth=2", "encoder.heads=1", "decoder.width=32", "decoder.depth=1",
    "decoder.heads=1", "projector.hidden=32", "projector.dim=16", "contrast.bank_size=64",
]
TINY = REAL | {
    "evidence_seconds": 200, "encoder_seconds": 90, "state_seconds": 30,
    "shape": [*STEP, *SMALL], "batch": 16, "device": "cpu", "threads": 1,
    "contenders": {
        EAGER: ["--bf16"], COMPILED: ["--bf16", "--compile", "--backend", "aot_eager"],
        f"{COMPILED}, bf16 throughout": [*HALF, "--compile", "--backend", "aot_eager"],
    },
    "checks": ["gelu true", "views, all corruptions"], "checks_until": 50, "ready_until": 105,
    "rounds": 2, "turn": 0.2, "first": 2, "behind_rounds": 60, "matmul": 256, "encode": [1, 4],
    "trial_epochs": 2, "trial_seconds": 40, "profile_seconds": 70,
    "recipes": [[*RECIPE, "train.batch_size=16", "data.limit=64", *SMALL]], "limit": 64, "knn_every": 2,
    "packing_seconds": 25, "most_epochs": 4, "part": 300_000,
}
