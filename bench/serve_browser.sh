#!/bin/sh
# Tests in a real browser that a page of an allowed origin can use a server with a key (CORS), and another page cannot.
#
#   bench/serve_browser.sh BUNDLE IMAGE
#
# Needs chromium (CHROMIUM=... names another) and Python.  The origin is given with a trailing slash, as copied from an address bar.
set -eu
bundle=$1 image=$2
work=$(mktemp -d)
trap 'kill $pid $pages 2>/dev/null || true; rm -rf "$work"' EXIT
url=http://127.0.0.1:8977
"${MACRL_SERVE:-target/release/macrl-serve}" --bundle "$bundle" --listen "${url#http://}" --api-key secret \
    --cors-origin http://LOCALHOST:8978/ > "$work/log" &
pid=$!
mkdir "$work/pages"
cp "$image" "$work/pages/image"
cat > "$work/pages/index.html" <<HTML
<!doctype html><title>test</title><pre id=out>running</pre>
<script>
const key = { authorization: "Bearer secret" };
const tries = {
  "with the key": () => image().then(body => fetch("$url/embed", { method: "POST", headers: { ...key, "content-type": "image/png" }, body })),
  "JSON and more headers": () => fetch("$url/search", { method: "POST", headers: { ...key, "content-type": "application/json", "x-stainless-os": "x", "x-request-id": "7" }, body: '{"id": "nothing"}' }),
  "PUT": () => image().then(body => fetch("$url/items/a%2Fb", { method: "PUT", headers: { ...key, "content-type": "image/png" }, body })),
  "DELETE": () => fetch("$url/items/a%2Fb", { method: "DELETE", headers: key }),
  "without the key": () => fetch("$url/info"),
  "models": () => fetch("$url/v1/models", { headers: key }),
};
const image = () => fetch("/image").then(answer => answer.blob());
(async () => {
  const lines = [];
  for (const [name, ask] of Object.entries(tries)) {
    try {
      const answer = await ask();
      await answer.text();
      lines.push(name + ": " + answer.status + (answer.headers.get("x-request-id") ? ", id read" : ""));
    } catch (error) { lines.push(name + ": blocked"); }
  }
  out.textContent = lines.join("; ") + "; done";
})();
</script>
HTML
(cd "$work/pages" && exec python3 -m http.server 8978 --bind 127.0.0.1 > /dev/null 2>&1) &
pages=$!
until curl -sf $url/ready > /dev/null && curl -sf http://127.0.0.1:8978/ > /dev/null; do kill -0 $pid && sleep 0.1; done
browse() { # the page's last words
    "${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --user-data-dir="$work/profile" --virtual-time-budget=20000 --dump-dom "$1" 2> /dev/null |
        sed -n 's/.*<pre id="out">\(.*\)<\/pre>.*/\1/p'
}
named=$(browse http://localhost:8978/)
other=$(browse http://127.0.0.1:8978/)
echo "named origin: $named"
echo "another origin: $other"
[ "$named" = "with the key: 200, id read; JSON and more headers: 404, id read; PUT: 201, id read; DELETE: 200, id read; without the key: 401, id read; models: 200, id read; done" ]
[ "$other" = "with the key: blocked; JSON and more headers: blocked; PUT: blocked; DELETE: blocked; without the key: blocked; models: blocked; done" ]
