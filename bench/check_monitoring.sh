#!/bin/sh
# Checks the files in deploy/ with promtool, against the metrics that a running server exports.
#
#   bench/check_monitoring.sh BUNDLE
#
# Needs promtool (Debian's package prometheus) and Python.  Fails on any fault.
set -eu
bundle=$1 here=$(cd "$(dirname "$0")/.." && pwd)
url=http://127.0.0.1:8971
work=$(mktemp -d)
trap 'kill $pid 2>/dev/null || true; rm -rf "$work"' EXIT
"${MACRL_SERVE:-target/release/macrl-serve}" --bundle "$bundle" --listen "${url#http://}" > "$work/log" &
pid=$!
cd "$here/deploy"
promtool check rules prometheus-rules.yml
promtool test rules prometheus-rules-test.yml
until curl -sf $url/ready > /dev/null; do kill -0 $pid && sleep 0.1; done
curl -s -o /dev/null $url/nothing
curl -s -o /dev/null -X POST $url/embed
curl -s $url/metrics > "$work/metrics"
promtool check metrics < "$work/metrics"
python3 - "$work" <<'PYTHON'
import json, re, subprocess, sys

work = sys.argv[1]
exported = set(re.findall(r"^# TYPE (\S+)", open(f"{work}/metrics").read(), re.M))
rules = open("prometheus-rules.yml").read()
recorded = set(re.findall(r"record: (\S+)", rules))
dashboard = json.load(open("grafana-dashboard.json"))
panels = [p for p in dashboard["panels"] if p["type"] != "row"]
expressions = [t["expr"] for p in panels for t in p["targets"]] + re.findall(r"expr: (?:>-\n)?((?:.|\n)*?)(?=\n +(?:-|for:|labels:)|\Z)", rules)
for expression in expressions:
    for name in re.findall(r"\b(?:macrl|process)[_:][a-z0-9_:]+", expression):
        known = name in recorded or re.sub(r"_(bucket|sum|count)$", "", name) in exported or name in exported
        assert known, f"{name} is not exported: {expression}"
# Fills in Grafana's variables, then checks that Prometheus accepts every panel's query.
fill = {"$__rate_interval": "5m", "$job": "macrl", "$instance": ".*", "$route": ".*"}
with open(f"{work}/dashboard.yml", "w") as out:
    out.write("groups:\n- name: dashboard\n  rules:\n")
    for number, expression in enumerate(e for p in panels for e in [t["expr"] for t in p["targets"]]):
        for variable, value in fill.items():
            expression = expression.replace(variable, value)
        out.write(f"  - record: panel:{number}\n    expr: {json.dumps(expression)}\n")
subprocess.run(["promtool", "check", "rules", f"{work}/dashboard.yml"], check=True)
boxes = [p["gridPos"] for p in dashboard["panels"]]
assert len({p["id"] for p in dashboard["panels"]}) == len(boxes)
for i, a in enumerate(boxes):
    assert a["x"] + a["w"] <= 24
    for b in boxes[i + 1:]:
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, f"panels overlap: {a} {b}"
print(f"{len(panels)} panels, {len(expressions)} expressions: every metric is exported")
PYTHON
