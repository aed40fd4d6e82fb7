"""Writes a software bill of materials (CycloneDX 1.5, JSON) of the three programs: every crate that is built into them on this
platform, with version, licence, checksum and dependencies.

    python3 -I scripts/sbom.py FILE

It asks `cargo metadata --locked`, so it lists what `cargo build --locked` builds.  Only the standard library is needed.
"""
import json
import pathlib
import re
import subprocess
import sys
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ("macrl-train", "macrl-export", "macrl-serve")


def cargo(*arguments):
    done = subprocess.run(["cargo", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"sbom: cargo {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def metadata():
    host = next(line.split(": ")[1] for line in cargo("version", "--verbose").splitlines() if line.startswith("host: "))
    return json.loads(cargo("metadata", "--locked", "--format-version=1", "--filter-platform", host)), host


def checksums():
    """{(name, version): SHA-256} from Cargo.lock."""
    found = {}
    for block in (ROOT / "Cargo.lock").read_text().split("[[package]]")[1:]:
        keys = dict(re.findall(r'^(name|version|checksum) = "(.*)"$', block, re.MULTILINE))
        if "checksum" in keys:
            found[keys["name"], keys["version"]] = keys["checksum"]
    return found


def built(nodes, roots):
    """The ids that `roots` are built from: normal and build dependencies, not those of tests."""
    seen, waiting = set(), list(roots)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting += [d["pkg"] for d in nodes[node]["deps"] if wanted(d)]
    return seen


def wanted(dependency):
    return any(kind["kind"] in (None, "build") for kind in dependency["dep_kinds"])


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, sums):
    own = package["source"] is None
    made = {
        "type": "application" if package["name"] in PROGRAMS else "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(package),
    }
    if package.get("license"):
        made["licenses"] = [{"expression": package["license"].replace("/", " OR ").replace("  ", " ")}]
    if not own and (package["name"], package["version"]) in sums:
        made["hashes"] = [{"alg": "SHA-256", "content": sums[package["name"], package["version"]]}]
    if package.get("description"):
        made["description"] = " ".join(package["description"].split())
    return made


def document():
    found, host = metadata()
    packages = {p["id"]: p for p in found["packages"]}
    nodes = {n["id"]: n for n in found["resolve"]["nodes"]}
    roots = [id for id in found["workspace_members"] if packages[id]["name"] in PROGRAMS]
    ids = sorted(built(nodes, roots), key=lambda id: (packages[id]["name"], packages[id]["version"]))
    sums = checksums()
    version = packages[roots[0]]["version"]
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": "macrl", "name": "macrl", "version": version},
            "properties": [{"name": "cargo:target", "value": host}],
        },
        "components": [component(packages[id], sums) for id in ids],
        "dependencies": [{"ref": "macrl", "dependsOn": sorted(reference(packages[id]) for id in roots)}]
        + [
            {
                "ref": reference(packages[id]),
                "dependsOn": sorted({reference(packages[d["pkg"]]) for d in nodes[id]["deps"] if wanted(d)}),
            }
            for id in ids
        ],
    }
    # The same dependencies give the same file.
    body["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))}"
    return body


def main():
    if len(sys.argv) != 2:
        sys.exit("sbom: expected one argument, the file to write")
    file = pathlib.Path(sys.argv[1])
    body = document()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(body, indent=1) + "\n")
    print(f"sbom: {file}: {len(body['components'])} components")


if __name__ == "__main__":
    main()
