#!/usr/bin/env bash
# Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 + 10,000 grey 28x28 images, into data/fashion-mnist or $1.
# Sources in this order: existing files; Debian's package, unpacked without root; the authors' repository.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-data/fashion-mnist}
package=dataset-fashion-mnist
repository=https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion
# Of the uncompressed contents: sources differ in the names and dates inside the .gz files.
checksums='c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888 train-images-idx3-ubyte
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9 train-labels-idx1-ubyte
5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b t10k-images-idx3-ubyte
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34 t10k-labels-idx1-ubyte'

say() { printf 'data: %s\n' "$*"; }

# Whether all four files are complete in folder $1.
complete() {
    local sum name
    while read -r sum name; do
        [ -f "$1/$name.gz" ] || return 1
        [ "$(gzip -dc "$1/$name.gz" 2>/dev/null | sha256sum | cut -d' ' -f1)" = "$sum" ] || return 1
    done <<<"$checksums"
}

from_debian() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    say "Debian's package $package (31 MB)"
    if ! (cd "$1" && apt-get download -qq "$package") >"$1/log" 2>&1; then
        # A fresh container has no package lists yet; only root may fetch them.
        [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 || return 1
        (cd "$1" && apt-get download -qq "$package") >"$1/log" 2>&1 || return 1
    fi
    dpkg-deb -x "$1"/*.deb "$1/package" && mv "$1"/package/usr/share/datasets/fashion-mnist/*.gz "$1/files/"
}

from_repository() {
    say "the authors' repository (31 MB)"
    local sum name
    while read -r sum name; do
        python3 -I - "$repository/$name.gz" "$1/files/$name.gz" <<'PYTHON' || return 1
import shutil, sys, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=60) as answer, open(sys.argv[2], "wb") as file:
        shutil.copyfileobj(answer, file)
except OSError as error:
    sys.exit(f"data: {sys.argv[1]}: {error}")
PYTHON
    done <<<"$checksums"
}

if complete "$folder"; then
    say "$folder is there"
    exit 0
fi
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
mkdir "$part/files"
for source in from_debian from_repository; do
    if $source "$part" && complete "$part/files"; then
        printf '%s\n' T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag 'Ankle boot' >"$part/files/classes.txt"
        mkdir -p "$folder"
        mv -f "$part"/files/* "$folder/"
        say "$folder is complete"
        exit 0
    fi
done
printf 'data: Fashion-MNIST could not be fetched; put its four .gz files into %s and try again\n' "$folder" >&2
exit 1
