#!/bin/sh
# Tests that no request is lost through nginx, which keeps its connections to the server for 60 s, when either side closes one.
#
#   bench/serve_nginx.sh BUNDLE IMAGE [KEEP_ALIVE]
#
# Sixty clients at once: each sends an image, pauses, and sends it again; the pauses are around 10 s and around 60 s.  nginx never repeats a
# POST, so a connection that the server closes at that moment is a lost request (502).  Each client has an upstream of its own, since nginx
# reuses the connection that was idle for the shortest time.  Packets between nginx and the server take 20 ms each way, as between two machines.
# KEEP_ALIVE is the server's --keep-alive: with 10 some requests are lost.  Needs nginx, takes 70 s.
set -eu
bundle=$1 image=$2 keep=${3:-75}
work=$(mktemp -d)
pid= relay= proxy=
trap 'kill $pid $relay $proxy 2>/dev/null || true; rm -rf "$work"' EXIT
"${MACRL_SERVE:-target/release/macrl-serve}" --bundle "$bundle" --listen 127.0.0.1:8975 --keep-alive "$keep" > "$work/log" &
pid=$!
cat > "$work/relay.py" <<'PYTHON'
import asyncio

DELAY = 0.02


async def one_way(reader, writer):
    """Forwards bytes, and the end of the stream, from one side to the other after 20 ms."""
    loop = asyncio.get_running_loop()

    def later(work, *arguments):
        if not writer.is_closing():
            work(*arguments)

    try:
        while data := await reader.read(65536):
            loop.call_later(DELAY, later, writer.write, data)
    except OSError:
        pass
    loop.call_later(DELAY, writer.close)


async def pair(reader, writer):
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", 8975)
    await asyncio.gather(one_way(reader, far_writer), one_way(far_reader, writer))


async def main():
    async with await asyncio.start_server(pair, "127.0.0.1", 8974, backlog=1000) as server:
        await server.serve_forever()


asyncio.run(main())
PYTHON
python3 "$work/relay.py" &
relay=$!
{
cat <<CONF
daemon off;
pid $work/pid;
error_log $work/error.log;
events {}
http {
  access_log off;
  client_body_temp_path $work/body; proxy_temp_path $work/proxy; fastcgi_temp_path $work/f; uwsgi_temp_path $work/u; scgi_temp_path $work/s;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
CONF
for i in $(seq 0 59); do
    echo "  upstream macrl$i { server 127.0.0.1:8974; keepalive 1; keepalive_timeout 60s; }"
done
echo "  server { listen 127.0.0.1:8976; keepalive_timeout 120s;"
for i in $(seq 0 59); do echo "    location /$i/ { proxy_pass http://macrl$i/; }"; done
echo "  }"
echo "}"
} > "$work/nginx.conf"
until curl -sf http://127.0.0.1:8975/ready > /dev/null; do kill -0 $pid && sleep 0.1; done
nginx -c "$work/nginx.conf" -p "$work" 2> /dev/null &
proxy=$!
until curl -sf http://127.0.0.1:8976/0/ready > /dev/null; do kill -0 $proxy && sleep 0.1; done
python3 - "$image" <<'PYTHON'
import collections, http.client, sys, threading, time

image = open(sys.argv[1], "rb").read()
statuses = collections.Counter()


def client(number, pause):
    connection = http.client.HTTPConnection("127.0.0.1", 8976, timeout=60)
    for wait in (0, pause):
        time.sleep(wait)
        try:
            connection.request("POST", f"/{number}/embed", image, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
        except OSError as error:
            statuses[type(error).__name__] += 1


# From just before to just after the timeout: the race needs both sides to act within a packet's travel time.
pauses = [10 + (i - 15) * 0.004 for i in range(30)] + [60 + (i - 15) * 0.02 for i in range(30)]
threads = [threading.Thread(target=client, args=(number, pause)) for number, pause in enumerate(pauses)]
[t.start() for t in threads]
[t.join() for t in threads]
lost = sum(count for status, count in statuses.items() if status != 200)
print(f"{sum(statuses.values())} requests, {lost} lost: {dict(statuses)}")
sys.exit(1 if lost else 0)
PYTHON
