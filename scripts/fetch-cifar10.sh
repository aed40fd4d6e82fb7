#!/usr/bin/env bash
# CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour 32x32 images in the official binary layout, into data/cifar10 or $1.
# Existing files are used; otherwise the official archive (163 MB) is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-data/cifar10}
archive=https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz
# The official files' published MD5s.
checksums='5dd7e06a14cb22eb9f671a540d1b7c25  data_batch_1.bin
5ea93a67294ea407fff1d09f752e9692  data_batch_2.bin
942cd6a4bcdd0dd3c604fbe906cb4421  data_batch_3.bin
ae636b3ba5c66a11e91e8cb52e771fcb  data_batch_4.bin
53f37980c15c3d472c316c40844f3f0d  data_batch_5.bin
803d5f7f4d78ea53de84dbe85f74fb6d  test_batch.bin'

say() { printf 'data: %s\n' "$*"; }
fail() { printf 'data: %s\n' "$*" >&2; exit 1; }

if [ -e "$folder/data_batch_1.bin" ] && [ -e "$folder/test_batch.bin" ]; then
    say "$folder is there"
    exit 0
fi
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
say "CIFAR-10's official archive (163 MB)"
python3 -I - "$archive" "$part" <<'PYTHON' || fail "CIFAR-10 could not be fetched; unpack $archive into $folder"
import pathlib, sys, tarfile, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=60) as answer, tarfile.open(fileobj=answer, mode="r|gz") as archive:
        for member in archive:
            name = pathlib.PurePosixPath(member.name).name
            if member.isfile() and name.endswith((".bin", ".txt")):
                (pathlib.Path(sys.argv[2]) / name).write_bytes(archive.extractfile(member).read())
except (OSError, tarfile.TarError) as error:
    sys.exit(f"data: {sys.argv[1]}: {error}")
PYTHON
(cd "$part" && md5sum --check --quiet <<<"$checksums") || fail "the archive does not hold the official files"
mkdir -p "$folder"
mv -f "$part"/*.bin "$part"/*.txt "$folder/"
say "$folder is complete"
