"""macrl-train on the GPU: a short trial that measures its speed, and a run of as many epochs as fit into the remaining time."""
import json
import os
import shutil
import subprocess
import time
import tomllib

from common import HERE, end


def command(call, folder, recipe, out, epochs, every):
    s = call.settings
    warm = max(1, round(epochs * s["warmup"])) if epochs > 1 else 0
    pairs = [*recipe, f"train.epochs={epochs}", f"train.warmup_epochs={warm}", f"evaluate.every_epochs={every}"]
    sets = [word for pair in pairs for word in ("--set", pair)]
    return [folder / "macrl-train", "pretrain", "--config", HERE / s["recipe_config"], "--data", call.scratch / "data", "--out", out,
            "--device", "cuda", *sets]


def metrics(run):
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


# Seconds; the log is read every 0.02 s.
SHORT = 0.4

# If the step cannot be captured as a graph, its operations are queued one by one, which is slower.
WITHOUT_GRAPH = {"MACRL_NO_CUDA_GRAPH": "1"}


def trial(call, folder, images, seconds):
    """A short run; returns {start, image, end, environment, recipe}: seconds until its first step, per image, and for the
    evaluation and checkpoint at an epoch's end; and the environment and recipe it used."""
    ways = [(recipe, environment) for recipe in call.settings["recipes"] for environment in ({}, WITHOUT_GRAPH)]
    for number, (recipe, environment) in enumerate(ways, 1):
        try:
            rate = one_trial(call, folder, images, seconds, recipe, environment)
            (call.scratch / "rate.json").write_text(json.dumps(rate))
            return rate
        except RuntimeError as why:
            if number == len(ways) or call.left() < seconds:
                raise
            call.not_run(f"Training with {' '.join(recipe)} {environment or 'and a captured graph'}", str(why))


def one_trial(call, folder, images, seconds, recipe, environment):
    run = call.scratch / "trial"
    shutil.rmtree(run, ignore_errors=True)
    epochs, log = call.settings["trial_epochs"], open(call.work / "trial.log", "a")
    begun, seen = time.monotonic(), []
    process = call.popen(command(call, folder, recipe, run, epochs, epochs), stdout=log, stderr=log,
                         stdin=subprocess.DEVNULL, env={**os.environ, **environment})
    while process.poll() is None:
        if time.monotonic() - begun > seconds or call.left() < 4:
            end(process)
            raise RuntimeError(f"the trial did not end within {seconds:.0f} s; {tail(call.work / 'trial.log')}")
        note_steps(run, seen)
        time.sleep(0.02)
    ended = time.monotonic()
    note_steps(run, seen)
    if process.returncode or not seen or seen[-1][2] != epochs:
        raise RuntimeError(f"the trial ended with status {process.returncode}: {tail(call.work / 'trial.log')}")
    shutil.copy(run / "metrics.jsonl", call.work / "trial-metrics.jsonl")
    batch = tomllib.loads((run / "config.toml").read_text())["train"]["batch_size"]
    image, last = seconds_an_image(run, seen, batch), seen[-1][0]
    start = last - begun - image * batch * seen[-1][1]
    return {"start": max(0.0, start), "image": image, "end": ended - last, "environment": environment, "recipe": recipe}


def note_steps(run, seen):
    """Adds (time, step, epoch) when further steps were logged; a GPU's steps are fetched many at a time, across epochs."""
    steps = [line for line in metrics(run) if line["kind"] == "step"]
    if steps and (not seen or steps[-1]["step"] > seen[-1][1]):
        seen.append((time.monotonic(), steps[-1]["step"], steps[-1]["epoch"]))


def seconds_an_image(run, seen, batch):
    """Measured after the first epoch, which warms up; the run's own rate if too few steps follow to be timed from here."""
    first, last = next(s for s in seen if s[2] >= 1), seen[-1]
    if last[0] - first[0] >= SHORT:
        return (last[0] - first[0]) / ((last[1] - first[1]) * batch)
    rates = sorted(line["images_per_second"] for line in metrics(run) if line["kind"] == "step")
    return 1 / rates[len(rates) // 2]


def used_of(call, images):
    """The number of images that the configuration uses."""
    return min(images, call.settings["limit"] or images)


def epochs_within(rate, images, seconds, every, most):
    """The number of epochs that fit, with an evaluation every `every` epochs."""
    epoch = rate["image"] * images + rate["end"] / every
    return max(1, min(most, int((seconds - rate["start"] - rate["end"]) / epoch)))


def pretrain(call, folder, run, epochs, seconds, rate):
    """Runs the training, interrupted if it takes too long; returns how it ended, in words.  A run that fails is resumed."""
    shutil.rmtree(run, ignore_errors=True)
    until, log, tries = time.monotonic() + seconds, call.out / "pretrain.log", 0
    left = lambda: until - time.monotonic()
    words = command(call, folder, rate["recipe"], run, epochs, call.settings["knn_every"])
    status = None
    while tries < 3 and status not in (0, 124) and left() > 5:
        tries += 1
        limit = ["timeout", "-s", "INT", "-k", "12", f"{max(1, round(left()))}"]
        with open(log, "a") as file:
            process = call.popen([*limit, *words, "--resume"], stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                                 env={**os.environ, **rate["environment"]})
            try:
                status = process.wait(max(1.0, left() + 14))
            except subprocess.TimeoutExpired:
                end(process)
                status = 124
    if tries > 1:
        call.not_run("Pretraining in one go", f"it took {tries} tries; see pretrain.log")
    lines = metrics(run)
    steps = [line for line in lines if line["kind"] == "step"]
    looks = [line for line in lines if line["kind"] == "eval" and "knn" in line]
    done = steps[-1]["epoch"] if steps else 0
    state = {0: "finished", 124: "was interrupted when time was up"}.get(status, f"ended with status {status}")
    text = [f"The run {state} after {done:.1f} of {epochs} epochs."]
    if steps:
        rates = sorted(line["images_per_second"] for line in steps)
        text.append(f"{rates[len(rates) // 2]:,.0f} images/s (median step), last loss {steps[-1]['loss']:.4f}.")
    text += ["", "| epoch | kNN among training images |", "| --- | --- |"]
    text += [f"| {look['epoch']} | {100 * look['knn']:.1f} % |" for look in looks]
    if not (run / "checkpoints/last.safetensors").exists():
        raise RuntimeError(f"{text[0]} It left no checkpoint: {tail(log)}")
    return "\n".join(text)


def tail(path):
    return path.read_text(errors="replace").strip()[-400:]
