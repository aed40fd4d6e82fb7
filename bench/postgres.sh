#!/bin/sh
# Compares the index in PostgreSQL with the embedded one on the same vectors, one after the other.
#
#   bench/postgres.sh [ITEMS [DIMENSIONS]]
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh tests
cargo build --release --locked --workspace --examples
bench=${CARGO_TARGET_DIR:-target}/release/examples/index_bench

place=$(mktemp -d)
as=
if [ "$(id -u)" = 0 ]; then
    # PostgreSQL refuses to run as root, and the user `nobody` needs access to this folder.
    as="setpriv --reuid=65534 --regid=65534 --clear-groups"
fi
cp -r .deps/postgres/bin .deps/postgres/lib .deps/postgres/share "$place"
[ -z "$as" ] || chown -R 65534:65534 "$place"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export LD_LIBRARY_PATH="$place/lib"
(cd "$place" && $as bin/initdb -D data -U macrl -E UTF8 --locale=C -A trust >/dev/null)
(cd "$place" && exec $as bin/postgres -D data -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c shared_buffers=1GB -c max_wal_size=4GB -c dynamic_shared_memory_type=mmap >log 2>&1) &
server=$!
trap 'kill -INT $server 2>/dev/null; wait $server 2>/dev/null || true; rm -rf "$place"' EXIT
unset LD_LIBRARY_PATH
for _ in $(seq 100); do
    if python3 -c "import socket; socket.create_connection(('127.0.0.1', $port))" 2>/dev/null; then break; fi
    sleep 0.1
done

printf '\nPostgreSQL, pgvector\n'
INDEX="postgres://macrl@127.0.0.1:$port/postgres" "$bench" "${1:-100000}" "${2:-192}"
printf '\nembedded\n'
"$bench" "${1:-100000}" "${2:-192}"
