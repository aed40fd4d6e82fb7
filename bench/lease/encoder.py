"""The second call pretrains an encoder in the remaining time; the third returns the rest of its state."""
import json
import shutil

import parts
import strips
import training
from common import ALL_BACK, FILES_BACK, HERE, MIB, Call, Over, unpack


def run(call):
    s = call.settings
    folder = call.part("Unpacking", 5, unpack, call)
    data = call.part("Images", 5, images, call)
    if folder is None or data is None:
        return
    which, count = data
    rate = known_rate(call, count, folder)
    if rate is None:
        return
    seconds = call.left() - s["packing_seconds"]
    epochs = training.epochs_within(rate, training.used_of(call, count), s["margin"] * seconds, s["knn_every"], s["most_epochs"])
    call.say(f"{epochs} epochs of {count} images in {seconds:.0f} s")
    path = call.scratch / "run"
    call.part("Pretraining", 10, training.pretrain, call, folder, path, epochs, seconds, rate)
    if which != "both halves":
        call.not_run("Training on all 50,000 images", f"the other half was not on this machine: {count} images")
    call.part("Packing", 1, pack, call, path)


def images(call):
    which, count = strips.unpack(HERE, call.scratch, call.manifest)
    call.section("Images", f"{count} images ({which}; MD5 as prepared).")
    return which, count


def known_rate(call, count, folder):
    """The speed that the first call measured, or measured now."""
    kept = call.scratch / "rate.json"
    if kept.exists():
        rate, whence = json.loads(kept.read_text()), "the first call's trial"
    else:
        rate, whence = call.part("How fast it is", 20, training.trial, call, folder, count, call.settings["trial_seconds"]), "a trial"
    if rate:
        call.section("Rate", f"{1 / rate['image']:,.0f} images/s with the ends of epochs, by {whence}; {' '.join(rate['recipe'])}.")
    return rate


def pack(call, run):
    """Puts the run's small files into the archive, and as many parts of its state into $OUT as may be returned."""
    s = call.settings
    names = parts.split(run, call.scratch / "parts", s["part"])
    parts.pack(run, call.work / "run")
    shutil.copy(call.scratch / "parts/parts.json", call.work / "run")
    # results.md, the archive, the logs; their size is small.
    return send(call, names, 4, 3 * MIB)


def send(call, names, files, size):
    """Copies the first of these parts to $OUT; the others stay for `state`."""
    room = min(FILES_BACK - files, (ALL_BACK - size) // call.settings["part"])
    for name in names[:room]:
        shutil.copy(call.scratch / "parts" / name, call.out)
    (call.scratch / "parts/waiting.json").write_text(json.dumps(names[room:]))
    if names[room:]:
        call.not_run("Bringing back the whole state", f"{', '.join(names[room:])} stay: the call `state` brings them while the machine is held")
    return f"Brought back: {', '.join(names[:room])}." if names else "Nothing was left to bring back."


def state(call):
    """Returns the parts that did not fit into the second call's files."""
    folder = call.scratch / "parts"
    waiting = folder / "waiting.json"
    if not waiting.exists():
        names = parts.split(call.scratch / "run", folder, call.settings["part"])  # the second call was cut off before it packed
        parts.pack(call.scratch / "run", call.work / "run")
        shutil.copy(folder / "parts.json", call.work / "run")
    else:
        names = json.loads(waiting.read_text())
    call.part("The state", 1, send, call, names, 4, 3 * MIB)


def main(which, out):
    settings = json.loads((HERE / "settings.json").read_text())
    call = Call(which, settings[f"{which}_seconds"], out)
    try:
        {"encoder": run, "state": state}[which](call)
    except Over:
        call.say("the call's time is up")
    except FileNotFoundError as why:
        call.not_run("The state", f"there is none on this machine: {why}")
    call.finish()
