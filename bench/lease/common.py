"""What both calls share: the clock, the log, processes with a time limit, and the files to return."""
import contextlib
import glob
import hashlib
import json
import lzma
import os
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tarfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
# Limits on what one call may return.
FILES_BACK, FILE_BACK, ALL_BACK = 8, 16 * MIB, 64 * MIB


class Over(BaseException):
    """The whole call's time is up.  Not an Exception, so that no part catches it by accident."""


class Call:
    """One call: its clock, its output folder, and the report of each part."""

    def __init__(self, name, seconds, out):
        self.start, self.seconds, self.name = time.monotonic(), seconds, name
        self.out = Path(out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch()
        self.work = self.scratch / name
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        keep_program(self.scratch / "program")
        self.settings = json.loads((HERE / "settings.json").read_text())
        self.manifest = json.loads((HERE / "manifest.json").read_text())
        self.log_file = open(self.out / "lease.log", "a", buffering=1)
        self.sections, self.unrun, self.processes = [], [], []
        os.environ["LD_LIBRARY_PATH"] = libraries()
        signal.signal(signal.SIGALRM, self.over)
        signal.alarm(max(1, round(seconds - 6)))
        signal.signal(signal.SIGTERM, lambda *_: self.stop())

    def over(self, *_):
        raise Over

    def stop(self):
        self.end_processes()
        sys.exit(1)

    def left(self):
        return self.seconds - (time.monotonic() - self.start)

    def at(self):
        return time.monotonic() - self.start

    def say(self, text):
        for line in str(text).splitlines() or [""]:
            line = f"[{self.at():6.1f} s] {line}"
            print(line, flush=True)
            self.log_file.write(line + "\n")

    def part(self, title, seconds, function, *given):
        """Runs a part; the next parts run whatever happens in it.  It is skipped if less than `seconds` is left."""
        if self.left() < seconds:
            return self.not_run(title, f"{self.left():.0f} s were left, it wants {seconds:.0f}")
        begun = self.at()
        self.say(f"== {title}")
        try:
            body = function(*given)
        except Over:
            self.not_run(title, "the call's time was up in the middle of it")
            raise
        except Exception as why:  # the other parts are worth having
            self.say(traceback.format_exc())
            self.not_run(title, f"failed: {type(why).__name__}: {str(why)[:300]}")
            return None
        self.say(f"== {title}: {self.at() - begun:.1f} s")
        if isinstance(body, str):
            self.section(title, body)
        return body

    def section(self, title, text):
        self.sections.append(f"### {title}\n\n{text}\n")
        self.write()

    def not_run(self, title, why):
        self.say(f"not run: {title}: {why}")
        self.unrun.append(f"- {title}: {why}")
        self.write()
        return None

    def write(self):
        """Writes results.md after every part, so that a call that is cut off keeps its results."""
        unrun = ["### Not run\n", *(self.unrun or ["Everything ran."])]
        (self.out / "results.md").write_text("\n".join([f"## {self.name}\n", *self.sections, *unrun, ""]))

    def popen(self, command, **more):
        process = subprocess.Popen([str(c) for c in command], start_new_session=True, **more)
        self.processes.append(process)
        return process

    def run(self, command, seconds, log, stdin=None, env=None):
        """Runs a command for at most `seconds`; its output goes into `log` as it comes.  Returns the status, 124 if it took too long."""
        with open(log, "a") as file:
            process = self.popen(command, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL, stdout=file,
                                 stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
            try:
                process.communicate(stdin.encode() if stdin else None, timeout=max(1, min(seconds, self.left() - 2)))
            except subprocess.TimeoutExpired:
                end(process)
                return 124
        return process.returncode

    def end_processes(self):
        for process in self.processes:
            end(process)

    def finish(self, status=None):
        """Puts everything else into one archive and checks the limits on what is returned."""
        signal.alarm(0)
        self.end_processes()
        self.write()
        for line in (self.out / "results.md").read_text().splitlines():
            print(line)
        if status:
            self.say(status)
        archive(self.work, self.out / "more.tar.xz")
        for fault in faults_of(self.out):
            self.say(f"too much to go back: {fault}")
        self.say(f"{self.name}: {self.at():.0f} of {self.seconds} s")


def keep_program(folder):
    """Copies the scripts to where a later call finds them, even one that sends nothing."""
    if HERE == folder:
        return
    folder.mkdir(exist_ok=True)
    for path in [*HERE.glob("*.py"), *HERE.glob("*.json")]:
        shutil.copy(path, folder)


def end(process):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


def scratch():
    """A folder that is still there in the next call on the same machine: in memory if there is room."""
    named = os.environ.get("LEASE_SCRATCH")
    roomy = lambda d: os.path.isdir(d) and shutil.disk_usage(d).free > 4 << 30
    root = named or next((d for d in ("/dev/shm", "/tmp") if roomy(d)), "/tmp") + "/macrl-lease"
    os.makedirs(root, exist_ok=True)
    return Path(root)


def libraries():
    """The folders of cuBLAS and related libraries: LEASE_LIBRARIES, else those of PyTorch's packages."""
    before = os.environ.get("LD_LIBRARY_PATH", "")
    named = os.environ.get("LEASE_LIBRARIES")
    if named:
        return f"{named}:{before}"
    paths = sysconfig.get_paths()
    roots = {paths["purelib"], paths["platlib"], *site.getsitepackages()}
    found = [d for r in sorted(roots) for d in glob.glob(f"{r}/nvidia/cu13/lib") + glob.glob(f"{r}/nvidia/*/lib")]
    driver = [d for d in ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib") if os.path.isdir(d)]
    return ":".join([*dict.fromkeys(found), *filter(None, [before]), *driver])


def digest(path, kind="sha256"):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def unpack(call):
    """Unpacks and checks the binaries; returns their folder."""
    packed = HERE / "binaries.tar.xz"
    if digest(packed) != call.manifest["binaries"]:
        raise RuntimeError("binaries.tar.xz is not the file that was prepared")
    folder = call.scratch / "bin"
    folder.mkdir(exist_ok=True)
    with lzma.open(packed) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall(folder, filter="data")
    return folder


def archive(folder, to):
    """Packs a folder's files, except large ones (checkpoints, binaries), into one .tar.xz below the size limit of a file."""
    keep = lambda info: None if info.name.endswith((".safetensors", ".bin", ".webp")) and info.size > MIB else info
    with tarfile.open(to, "w:xz", preset=1) as packed:
        packed.add(folder, arcname=Path(folder).name, filter=keep)


def faults_of(out):
    """The files of the folder that would not be returned."""
    files = [p for p in Path(out).rglob("*") if p.is_file()]
    sizes = [p.stat().st_size for p in files]
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    faults = [f"{p.name}: {s / MIB:.1f} MiB of {FILE_BACK / MIB:.0f}" for p, s in zip(files, sizes) if s > FILE_BACK]
    faults += [f"{p.relative_to(out)}: a name with odd characters, or too deep" for p in files
               if not set(p.name) <= allowed or len(p.relative_to(out).parts) > 3]
    if len(files) > FILES_BACK:
        faults.append(f"{len(files)} files of {FILES_BACK}")
    if sum(sizes) > ALL_BACK:
        faults.append(f"{sum(sizes) / MIB:.1f} MiB of {ALL_BACK / MIB:.0f} together")
    return faults
