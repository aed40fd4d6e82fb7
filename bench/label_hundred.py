"""Labels 100 CIFAR-10 images through the routes of the search page, and reports the accuracy on the rest.

    label_hundred.py URL [BUDGET]

The server holds CIFAR-10 images whose metadata has `label` (macrl-serve ingest; sub-folders are labels).  The labels are given as
the page gives them: 20 items drawn at random, then the 20 least certain ones, until BUDGET (100).  Beside it: labels drawn at
random, and the probe of the bundle, which was trained on 50,000 labelled images.
"""
import json
import random
import sys
import urllib.parse
import urllib.request

URL = sys.argv[1].rstrip("/")
BUDGET = int(sys.argv[2]) if len(sys.argv) > 2 else 100
ROUND = 20


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def all_items():
    items, cursor = {}, ""
    while cursor is not None:
        page = call("GET", f"/items?limit=1000&cursor={urllib.parse.quote(cursor)}")
        items.update((item["id"], item["metadata"]["label"]) for item in page["items"])
        cursor = page["next"]
    return items


def give(truth, ids):
    call("POST", "/labels", {"labels": [{"id": id, "label": truth[id]} for id in ids]})


def clear():
    given = [entry["id"] for entry in call("GET", "/labels")["labels"]]
    if given:
        call("POST", "/labels", {"labels": [{"id": id, "label": None} for id in given]})


def judge(truth):
    given = {entry["id"] for entry in call("GET", "/labels")["labels"]}
    rest = sorted(set(truth) - given)
    right = 0
    for start in range(0, len(rest), 10_000):
        probe = call("POST", "/probe", {"classify": rest[start:start + 10_000]})
        right += sum(truth[guess["id"]] == guess["label"] for guess in probe["classified"])
    held_out = probe["held_out"]["accuracy"] if "held_out" in probe else float("nan")
    return len(given), right / len(rest), held_out, len(rest)


def run(truth, draw, active):
    clear()
    order = draw.sample(sorted(truth), BUDGET)
    give(truth, order[:ROUND])
    for start in range(ROUND, BUDGET, ROUND):
        print("  {} labels: {:.1%} of the rest right; the server's own estimate {:.1%}".format(*judge(truth)[:3]))
        next_ids = [guess["id"] for guess in call("POST", "/probe", {"uncertain": ROUND})["uncertain"]] if active else order[start:start + ROUND]
        give(truth, next_ids)
    labels, accuracy, estimate, rest = judge(truth)
    print(f"  {labels} labels: {accuracy:.1%} of the other {rest} right; the server's own estimate {estimate:.1%}")


truth = all_items()
print(f"{len(truth)} items of {len(set(truth.values()))} classes")
for name, active in (("least certain next", True), ("drawn at random", False)):
    print(name)
    run(truth, random.Random(0), active)
linear = next(row["linear"] for row in call("GET", "/info")["model"]["evaluation"]["rows"] if row["features"] == "macrl")
print(f"the bundle's probe, trained on 50,000 labels: {linear:.1%} of the test images")
clear()
