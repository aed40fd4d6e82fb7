"""One step, kernel by kernel: time and DRAM traffic as Nsight Compute measures them."""
import csv
import shutil

from checks import first

METRICS = ["gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"]
SHOWN = 24


def profile(call, command, seconds):
    """Profiles the step that `bench_cuda ... profile` marks, without a captured graph."""
    tool = shutil.which("ncu") or first("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu")
    if not tool:
        raise RuntimeError("ncu is not here")
    report = call.work / "kernels.csv"
    ncu = [tool, "--clock-control", "none", "--profile-from-start", "off", "--metrics", ",".join(METRICS), "--csv", "--page", "raw",
           "--print-units", "base", "--log-file", report]
    env = {"MACRL_NO_CUDA_GRAPH": "1"}
    status = call.run([*ncu, *command], seconds, call.work / "ncu.log", stdin="profile\n", env=env)
    text = report.read_text(errors="replace") if report.exists() else ""
    if status and not text:
        tail = (call.work / "ncu.log").read_text(errors="replace").strip()[-300:]
        raise RuntimeError(f"ncu ended with status {status} (124: too long): {tail}")
    whole = "" if status == 0 else f"ncu ended with status {status} (124: too long): what follows is a part of the step.\n\n"
    return whole + table(text)


def rows(text):
    """(kernel, nanoseconds, bytes) of each launch in ncu's raw page."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    for row in csv.DictReader(lines):
        try:
            time, read, written = (float(row[m].replace(",", "")) for m in METRICS)
        except (KeyError, ValueError, AttributeError):
            continue  # the row of units, or a launch without counters
        yield row["Kernel Name"], time, read + written


def table(text):
    sums = {}
    for name, time, moved in rows(text):
        name = short(name)
        count, all_time, all_moved = sums.get(name, (0, 0.0, 0.0))
        sums[name] = (count + 1, all_time + time, all_moved + moved)
    if not sums:
        raise RuntimeError("ncu wrote no kernel with the metrics asked for; see kernels.csv and ncu.log")
    total, moved = sum(s[1] for s in sums.values()), sum(s[2] for s in sums.values())
    order = sorted(sums.items(), key=lambda item: -item[1][1])
    out = [f"{sum(s[0] for s in sums.values())} kernels, {total / 1e6:.2f} ms, {moved / 1e9:.2f} GB: {moved / total:.0f} GB/s.", "",
           "| kernel | launches | ms | of the step | GB/s |", "| --- | --- | --- | --- | --- |"]
    for name, (count, time, bytes_) in order[:SHOWN]:
        out.append(f"| {name} | {count} | {time / 1e6:.3f} | {100 * time / total:.1f} % | {bytes_ / max(time, 1.0):.0f} |")
    if len(order) > SHOWN:
        rest = order[SHOWN:]
        time = sum(s[1] for _, s in rest)
        out.append(f"| {len(rest)} others | {sum(s[0] for _, s in rest)} | {time / 1e6:.3f} | {100 * time / total:.1f} % | |")
    return "\n".join(out)


def short(name):
    """A kernel's name without arguments; the long ones of matrix products cut."""
    name = name.split("(")[0].replace("|", "/").removeprefix("void ")
    return name if len(name) <= 64 else f"{name[:40]}...{name[-20:]}"
