"""Checks every kernel against the CPU, one after the other, with a log that survives a hang.

check_cuda says which check begins and prints each result as it has it.  A check that hangs or crashes ends that process;
the next one goes on behind it.  A crashed check runs once more under compute-sanitizer.
"""
import os
import re
import select
import shutil
import time

from common import end

# After these errors the GPU's context is lost, and everything later in the same process would fail too.
LOST = re.compile(r"ILLEGAL|MISALIGNED|LAUNCH_FAILED|LAUNCH_TIMEOUT|ASSERT|HARDWARE_STACK|INVALID_PC|ECC_|context is destroyed", re.I)
RESTARTS = 8


class Checks:
    def __init__(self, call, binary):
        self.call, self.binary = call, binary
        self.log = open(call.out / "checks.log", "a", buffering=1)
        self.results, self.crashed, self.hung, self.name = [], [], [], None

    def all(self, seconds, only=None):
        """Runs all checks whose name contains `only`, for at most `seconds`; returns whether all ran."""
        until, after = time.monotonic() + seconds, None
        for _ in range(RESTARTS):
            done, after = self.process(until, after, only)
            if done or time.monotonic() > until:
                return done
        return False

    def process(self, until, after, only):
        """Runs one process; returns (whether it finished, the last check it began)."""
        limit = self.call.settings["check_seconds"]
        command = [self.binary, *(["--after", after] if after else []), *([only] if only else [])]
        process = self.call.popen(command, stdout=-1, stderr=-2, text=True, bufsize=1)
        self.name, since = None, time.monotonic()
        for line in lines(process.stdout, lambda: min(until, since + limit)):
            if line is None:
                end(process)
                why = f"nothing for {limit} s" if time.monotonic() < until else "out of time"
                self.log.write(f"hang {self.name}: {why}\n")
                self.hung.append(f"{self.name}: {why}")
                return False, self.name or after
            self.log.write(line + "\n")
            since = time.monotonic()
            if line.startswith("begin "):
                self.name = line[6:]
            elif line.startswith(("pass ", "FAIL ")):
                self.results.append(line)
                if line.startswith("FAIL ") and LOST.search(line):
                    end(process)
                    self.crashed.append(self.name)
                    return False, self.name
            elif "checks passed" in line:
                process.wait(20)
                return True, None
        status = process.wait(20)
        self.log.write(f"crash {self.name}: ended with status {status}\n")
        if self.name is None or self.name == after:
            raise RuntimeError(f"check_cuda ended with status {status} before its first check; see checks.log")
        self.crashed.append(self.name)
        return False, self.name

    def sanitize(self, seconds):
        """Repeats the first crashed checks, each under compute-sanitizer."""
        tool = shutil.which("compute-sanitizer") or first("/usr/local/cuda/bin/compute-sanitizer")
        if not tool:
            return "compute-sanitizer is not here."
        found = []
        for name in self.crashed[:2]:
            log = self.call.work / "sanitizer.log"
            status = self.call.run([tool, "--tool", "memcheck", self.binary, "--only", name], seconds, log)
            report = [line.strip() for line in open(log, errors="replace") if line.startswith("=========")]
            found += [f"compute-sanitizer on `{name}`: status {status}", "", "```", *report[:14], "```", ""]
        return "\n".join(found)

    def table(self):
        worst = {}
        for line in self.results:
            name, fine = line[5:].split(":")[0], line.startswith("pass ")
            numbers = re.search(r"(\S+) \(at most (\S+)\)$", line)
            error, limit = (float(n) for n in numbers.groups()) if numbers else (float("nan"), float("nan"))
            share = error / limit if limit else float("inf")
            old = worst.get(name)
            if old is None or not share <= old[2]:
                worst[name] = (error, limit, share, fine)
            worst[name] = (*worst[name][:3], fine and (old is None or old[3]))
        passed = sum(line.startswith("pass ") for line in self.results)
        rows = [f"{passed} checks passed, {len(self.results) - passed} failed, {len(self.crashed)} crashed, {len(self.hung)} hung."]
        rows += [f"Crashed: {name}" for name in self.crashed] + [f"Hung: {name}" for name in self.hung]
        rows += ["", "| check | largest relative error | tolerance | |", "| --- | --- | --- | --- |"]
        rows += [f"| {n} | {e:.1e} | {t:.0e} | {'pass' if ok else '**FAIL**'} |" for n, (e, t, _, ok) in worst.items()]
        return "\n".join(rows)


def lines(stream, deadline):
    """Yields a process's lines as they come; None if the next one is not there by the deadline."""
    rest, number = b"", stream.fileno()
    while True:
        ready, _, _ = select.select([number], [], [], max(0.0, deadline() - time.monotonic()))
        if not ready:
            yield None
            return
        piece = os.read(number, 65536)
        if not piece:
            if rest:
                yield rest.decode(errors="replace")
            return
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def first(*paths):
    return next((p for p in paths if os.path.exists(p)), None)
