"""The first call: which parts run on the GPU, whether they are correct, and how fast they are."""
import json
import shutil
import subprocess
import sys

import kernels
import training
from checks import Checks
from common import HERE, Over, unpack
from contenders import Contest


def machine():
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    if not shutil.which("nvidia-smi"):
        return "nvidia-smi is not here."
    return subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.strip()


def run(call):
    s = call.settings
    folder = call.part("Unpacking", 5, unpack, call)
    if folder is None:
        return
    # Checks use one core and the GPU, compilers the other cores, decoding all of them for a second.
    images = call.popen([sys.executable, HERE / "strips.py", HERE, call.scratch], stdout=-1, stderr=open(call.work / "images.log", "w"))
    call.part("The machine", 2, machine)
    contest, checks = Contest(call, folder), Checks(call, folder / "check_cuda")
    started = call.part("Starting ours and the contenders", 20, contest.start, s["written_seconds"])
    ran = False
    for only in s["checks"]:
        share = (s["checks_until"] - call.at()) / len(s["checks"])
        ran = call.part(f"Checks {only or ''}".strip(), 10, checks.all, share, only)
        if ran is False:
            call.not_run("Checks behind the last one in checks.log", "no time left, or too many of them hung or crashed")
    call.section("Kernels against the CPU", checks.table())
    if started:
        race(call, contest)
    contest.close()
    call.part("A short training run", 15, trial, call, folder, images)
    if checks.crashed:
        call.part("compute-sanitizer", 10, checks.sanitize, min(60, call.left() - 8))
    if started:
        command = contest.command()
        call.part("A step kernel by kernel", 12, kernels.profile, call, command, min(s["profile_seconds"], call.left() - 6))


def race(call, contest):
    s = call.settings
    ready = call.part("Waiting for the contenders", 5, contest.ready, max(5, s["ready_until"] - call.at()))
    if ready is None:
        return
    if contest.others:
        call.part("The machine at its best", 5, contest.machine)
    call.part("A training step", s["behind_rounds"] / 2, contest.rounds)
    call.part("The encoder alone", s["behind_rounds"] / 2, contest.encoders)


def trial(call, folder, images):
    out, _ = images.communicate(timeout=30)
    if images.returncode:
        raise RuntimeError(f"the images: {training.tail(call.work / 'images.log')}")
    found = json.loads(out)
    rate = training.trial(call, folder, found["images"], call.settings["trial_seconds"])
    return (f"{call.settings['trial_epochs']} epochs of {found['images']} images ({found['which']}; MD5 as prepared): "
            f"{1 / rate['image']:,.0f} images/s with the ends of epochs, {rate['start']:.1f} s to start, "
            f"{rate['end']:.1f} s for a look at the features and the end.")


def main(out):
    from common import Call

    call = Call("evidence", json.loads((HERE / "settings.json").read_text())["evidence_seconds"], out)
    try:
        run(call)
    except Over:
        call.say("the call's time is up")
    call.finish()
