"""Images per second of torchvision v2 on one thread for both augmented views; the counterpart of `train/examples/bench_views.rs`.

    views_torchvision.py --size 32|224 IMAGE_FOLDER [SECONDS]

The same images, the same distributions, the fastest order that torchvision's own recipes use: uint8 through the whole
chain, floats only for the normalisation.
"""

import json
import pathlib
import sys
import time

import torch
from PIL import Image
from torchvision.transforms import v2

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pipelines(size):
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    ratio = (3 / 4, 4 / 3)
    strong = [
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), ratio=ratio, antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
    ]
    if size > 48:
        kernel = 2 * (size // 20) + 1
        strong.append(v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=0.5))
    strong.append(v2.RandomSolarize(128, p=0.1))
    weak = [
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=ratio, antialias=True),
        v2.RandomHorizontalFlip(0.5),
    ]
    return v2.Compose(strong + finish), v2.Compose(weak + finish)


def main():
    if len(sys.argv) < 4 or sys.argv[1] != "--size":
        sys.exit(__doc__)
    size, folder = int(sys.argv[2]), pathlib.Path(sys.argv[3])
    seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 3.0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))[:2000]
    images = [v2.functional.pil_to_tensor(Image.open(p).convert("RGB")) for p in files]
    both = pipelines(size)
    for image in images[:20]:
        [p(image) for p in both]
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for image in images:
            for pipeline in both:
                pipeline(image)
            done += 1
            if time.perf_counter() - start > seconds:
                break
    rate = done / (time.perf_counter() - start)
    print(json.dumps({"size": size, "images": len(images), "whole": round(rate, 1)}))


if __name__ == "__main__":
    main()
