"""Tests of cases that the rehearsal does not reach: hangs, crashes, tables of Nsight Compute, parts, clocks.

    python3 bench/lease/test_lease.py
"""
import os
import sys
import tarfile
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import checks
import common
import contenders
import kernels
import parts
import training

FAKE = """#!{python}
import sys, time
NAMES = {names!r}
words = sys.argv[1:]
after = words[words.index("--after") + 1] if "--after" in words else None
for name in NAMES[NAMES.index(after) + 1 if after else 0:]:
    print("begin", name, flush=True)
    if name == "hangs":
        time.sleep(60)
    if name == "crashes":
        sys.exit(139)
    if name == "lost":
        print("FAIL lost: CUDA_ERROR_ILLEGAL_ADDRESS", flush=True)
        time.sleep(60)
    print(f"pass {{name}}: result 1.00e-06 (at most 2e-5)", flush=True)
print("9 checks passed, 0 failed")
"""


# A trainer that logs the steps it is told to.
TRAINER = """import json, os, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
(out / "checkpoints").mkdir(parents=True, exist_ok=True)
(out / "config.toml").write_text("[train]\\nbatch_size = 32\\n")
def log(epoch):
    (out / "checkpoints/last.safetensors").touch()
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "step", "step": 2 * epoch, "epoch": epoch, "loss": 1.0, "images_per_second": 9.0}) + "\\n")
"""


class Call(common.Call):
    """A call without the machine's files."""

    def __init__(self, folder, seconds=60):
        self.start, self.seconds, self.name = time.monotonic(), seconds, "test"
        self.out = self.work = self.scratch = Path(folder)
        self.settings = {"check_seconds": 4}
        self.log_file = open(os.devnull, "w")
        self.sections, self.unrun, self.processes = [], [], []


class Tests(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.call = Call(self.folder)
        mock.patch.object(common.Call, "say", lambda *_: None).start()
        self.addCleanup(mock.patch.stopall)

    def check(self, names, seconds=30):
        binary = self.folder / "check_cuda"
        binary.write_text(FAKE.format(python=sys.executable, names=names))
        binary.chmod(0o755)
        found = checks.Checks(self.call, binary)
        return found, found.all(seconds)

    def test_a_hang_and_a_crash_cost_one_check_each(self):
        found, done = self.check(["a", "hangs", "b", "crashes", "c", "lost", "d"])
        self.assertTrue(done)
        self.assertEqual(found.crashed, ["crashes", "lost"])
        self.assertEqual(found.hung, ["hangs: nothing for 4 s"])
        passed = [line.split(":")[0] for line in found.results if line.startswith("pass")]
        self.assertEqual(passed, ["pass a", "pass b", "pass c", "pass d"])
        log = (self.folder / "checks.log").read_text()
        self.assertIn("hang hangs", log)
        self.assertIn("crash crashes: ended with status 139", log)
        self.assertIn("4 checks passed, 1 failed, 2 crashed, 1 hung", found.table())
        self.assertIn("| lost | nan | nan | **FAIL** |", found.table())

    def test_time_for_all_checks_ends(self):
        begun = time.monotonic()
        found, done = self.check(["a", "hangs", "hangs"], seconds=0.8)
        self.assertFalse(done)
        self.assertEqual(found.hung, ["hangs: out of time"])
        self.assertLess(time.monotonic() - begun, 10)

    def test_a_program_that_does_not_start_is_no_check(self):
        with self.assertRaisesRegex(RuntimeError, "before its first check"):
            binary = self.folder / "check_cuda"
            binary.write_text("#!/bin/sh\nexit 3\n")
            binary.chmod(0o755)
            checks.Checks(self.call, binary).all(5)

    def test_a_worker_that_ends_says_its_last_word(self):
        worker = contenders.Worker(self.call, "ours", ["sh", "-c", "echo written; echo ready 1.5; echo Error: no memory >&2; echo bye >&2"])
        self.assertEqual(worker.line(5), "written")
        worker.start(5)
        self.assertEqual(worker.losses, [1.5])
        with self.assertRaisesRegex(RuntimeError, "ours ended: Error: no memory"):
            worker.line(5)

    def test_parts_that_fail_leave_the_others(self):
        self.call.part("bad", 1, lambda: 1 / 0)
        self.call.part("too late", 1000, lambda: "x")
        self.call.part("good", 1, lambda: "fine")
        text = (self.folder / "results.md").read_text()
        self.assertIn("### good\n\nfine", text)
        self.assertIn("- bad: failed: ZeroDivisionError", text)
        self.assertRegex(text, r"- too late: \d+ s were left, it wants 1000")

    def test_kernels_are_summed_by_name(self):
        page = "\n".join([
            "==PROF== Connected to process 1",
            '"ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum"',
            '"","","byte","byte","ns"',
            '"0","void gemm(int, float)","1,000","0","100"',
            '"1","gemm(int, float)","1000","1000","300"',
            '"2","other","0","100","50"',
        ])
        table = kernels.table(page)
        self.assertIn("3 kernels, 0.00 ms, 0.00 GB: 7 GB/s.", table)
        self.assertIn("| gemm | 2 | 0.000 | 88.9 % | 8 |", table)
        with self.assertRaisesRegex(RuntimeError, "no kernel"):
            kernels.table('"ID","Kernel Name"\n"0","x"')

    def test_a_state_comes_back_whole(self):
        run, other = self.folder / "run", self.folder / "packed"
        (run / "checkpoints").mkdir(parents=True)
        tensors = {"encoder.a": ({"dtype": "F32", "shape": [700], "data_offsets": [0, 2800]}, os.urandom(2800)),
                   "bank.images": ({"dtype": "U32", "shape": [5], "data_offsets": [2800, 2820]}, os.urandom(20)),
                   "key.b": ({"dtype": "F32", "shape": [900], "data_offsets": [2820, 6420]}, os.urandom(3600))}
        (run / "checkpoints/last.safetensors").write_bytes(parts.to_bytes({"config": "x", "step": "3"}, tensors))
        (run / "config.toml").write_text("[train]\n")
        names = parts.split(run, other, 1000)
        self.assertEqual(names[0], "encoder.00")
        self.assertGreater(len(names), 6)
        parts.pack(run, self.folder / "encoder/run")
        (other / "parts.json").rename(self.folder / "encoder/run/parts.json")
        (self.folder / "back").mkdir()
        with tarfile.open(self.folder / "back/more.tar.xz", "w:xz") as packed:
            packed.add(self.folder / "encoder", arcname="encoder")
        with mock.patch("builtins.print"):
            parts.join([self.folder / "back", other], self.folder / "joined")
        notes, found = parts.read((self.folder / "joined/checkpoints/last.safetensors").read_bytes())
        self.assertEqual(notes, {"config": "x", "step": "3"})
        self.assertEqual({n: bytes(d) for n, (_, d) in found.items()}, {n: d for n, (_, d) in tensors.items()})
        self.assertTrue((self.folder / "joined/config.toml").exists())
        next(other.glob("rest.*")).unlink()
        with mock.patch("builtins.print"):
            parts.join([self.folder / "back", other], self.folder / "joined")
        _, found = parts.read((self.folder / "joined/checkpoints/last.safetensors").read_bytes())
        self.assertEqual(list(found), ["encoder.a"])
        next(other.glob("encoder.*")).write_bytes(b"other")
        with self.assertRaisesRegex(SystemExit, "is not the part that was written"):
            parts.join([self.folder / "back", other], self.folder / "joined")

    def trainer(self, body):
        binary = self.folder / "macrl-train"
        binary.write_text(f"#!{sys.executable}\n{TRAINER}{body}")
        binary.chmod(0o755)
        self.call.settings = {"recipes": [[]], "recipe_config": "none.toml", "warmup": 0.05, "knn_every": 2, "trial_epochs": 2, "limit": 0}

    def test_a_run_that_fails_is_resumed(self):
        self.trainer("log(1)\nif not (out / 'tried').exists():\n    (out / 'tried').touch()\n    sys.exit(1)\nlog(4)\n")
        text = training.pretrain(self.call, self.folder, self.folder / "run", 4, 30, {"recipe": [], "environment": {}})
        self.assertIn("The run finished after 4.0 of 4 epochs.", text)
        self.assertEqual(self.call.unrun, ["- Pretraining in one go: it took 2 tries; see pretrain.log"])

    def test_a_run_that_takes_too_long_is_interrupted_and_kept(self):
        self.trainer("log(1)\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    log(2)\n    sys.exit(1)\n")
        text = training.pretrain(self.call, self.folder, self.folder / "run", 4, 6, {"recipe": [], "environment": {}})
        self.assertIn("The run was interrupted when time was up after 2.0 of 4 epochs.", text)

    def test_a_trial_goes_on_without_a_captured_graph(self):
        body = "if 'MACRL_NO_CUDA_GRAPH' not in os.environ:\n    sys.exit('error: no capture')\nlog(1)\ntime.sleep(1)\nlog(2)\n"
        self.trainer(body)
        rate = training.trial(self.call, self.folder, 70, 30)
        self.assertEqual(rate["environment"], training.WITHOUT_GRAPH)
        # two steps of 32 images an epoch
        self.assertGreater(rate["image"], 0.5 / 64)
        self.assertLess(rate["image"], 10 / 64)
        self.assertEqual(rate["recipe"], [])
        self.assertIn("- Training with  and a captured graph: the trial ended with status 1: error: no capture", self.call.unrun)

    def test_steps_that_are_logged_at_once_do_not_count_as_fast(self):
        line = '{"kind": "step", "step": %d, "epoch": %d, "images_per_second": 9.0}\n'
        (self.folder / "metrics.jsonl").write_text("".join(line % (2 * epoch, epoch) for epoch in (1, 2)))
        for seen in ([(8.0, 4, 2)], [(8.0, 2, 1), (8.02, 4, 2)]):
            self.assertAlmostEqual(training.seconds_an_image(self.folder, seen, 32), 1 / 9)

    def test_a_rate_is_that_of_the_steps_between_two_looks(self):
        # 97 steps an epoch, sixteen logged at a time: the first epoch's last step is seen with the 112th
        seen = [(8.0, 96, 0.99), (10.0, 112, 112 / 97), (12.0, 304, 304 / 97), (13.0, 388, 4.0)]
        self.assertAlmostEqual(training.seconds_an_image(self.folder, seen, 256), 3.0 / (276 * 256))

    def test_epochs_fit_into_the_time(self):
        rate = {"start": 10.0, "image": 1 / 50_000, "end": 3.0}
        # 1.15 s an epoch, and a look at the features every 20
        self.assertEqual(training.epochs_within(rate, 50_000, 358.0, 20, 1000), 300)
        self.assertEqual(training.epochs_within(rate, 50_000, 358.0, 20, 200), 200)
        self.assertEqual(training.epochs_within(rate, 50_000, 5.0, 20, 1000), 1)

    def test_what_is_too_much_to_go_back_is_named(self):
        out = self.folder / "out"
        (out / "a/b/c").mkdir(parents=True)
        for i in range(8):
            (out / f"file-{i}").write_text("x")
        self.assertEqual(common.faults_of(out), [])
        (out / "a/b/c/deep").write_text("x")
        (out / "odd name").write_text("x")
        with mock.patch.object(common, "FILE_BACK", 0):
            self.assertGreater(len(common.faults_of(out)), 8)
        self.assertEqual(len(common.faults_of(out)), 3)


if __name__ == "__main__":
    sys.argv = sys.argv[:1]
    unittest.main(argv=sys.argv, warnings="ignore")
