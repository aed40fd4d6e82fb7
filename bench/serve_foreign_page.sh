#!/bin/sh
# Tests in a real browser that a page of another origin can neither write to nor read from a server without a key, and that the
# server's own pages work under their content security policy.
#
#   bench/serve_foreign_page.sh BUNDLE IMAGE
#
# Needs chromium (CHROMIUM=... names another), curl and Python.
set -eu
bundle=$1 image=$2
work=$(mktemp -d)
trap 'kill $pid $pages 2>/dev/null || true; rm -rf "$work"' EXIT
url=http://127.0.0.1:8977
"${MACRL_SERVE:-target/release/macrl-serve}" --bundle "$bundle" --listen "${url#http://}" > "$work/log" &
pid=$!
mkdir "$work/pages"
# The page sends a form (no preflight), no-cors requests, and images; then it asks what it could read.
cat > "$work/pages/index.html" <<HTML
<!doctype html><title>test</title><pre id=out>running</pre>
<iframe name=hidden></iframe><iframe id=framed src="$url/"></iframe>
<form id=form method=post target=hidden enctype=multipart/form-data action="$url/items"><input name=metadata value="{}"></form>
<script>
const body = new FormData();
const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
const base = location.search === "?rebound" ? "" : "$url";
const shown = () => new Promise(done => { const image = new Image(); image.onload = () => done("shown"); image.onerror = () => done("blocked"); image.src = base + "/items/kept/image"; });
(async () => {
  const picture = await new Promise(done => canvas.toBlob(done));
  body.append("images", new File([picture], "kept"));
  const tries = {
    "form": () => fetch(base + "/items", { method: "POST", mode: "no-cors", body }),
    "read": () => fetch(base + "/items"),
    "delete": () => fetch(base + "/items/kept", { method: "DELETE" }),
  };
  const lines = ["image: " + await shown()];
  for (const [name, ask] of Object.entries(tries)) {
    try { const answer = await ask(); lines.push(name + ": " + (answer.type === "opaque" ? "sent" : answer.status)); } catch { lines.push(name + ": blocked"); }
  }
  const files = new DataTransfer();
  files.items.add(new File([picture], "kept"));
  const input = Object.assign(document.createElement("input"), { type: "file", name: "images", files: files.files });
  form.append(input);
  form.submit();
  await new Promise(done => setTimeout(done, 500));
  out.textContent = lines.join("; ") + "; done";
})();
</script>
HTML
(cd "$work/pages" && exec python3 -m http.server 8978 --bind 127.0.0.1 > /dev/null 2>&1) &
pages=$!
until curl -sf $url/ready > /dev/null && curl -sf http://127.0.0.1:8978/ > /dev/null; do kill -0 $pid && sleep 0.1; done
curl -sf -X PUT -H 'content-type: image/png' --data-binary "@$image" $url/items/kept > /dev/null
before=$(curl -sf "$url/items?vectors=true")
browse() {
    "${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --enable-logging=stderr --user-data-dir="$work/profile" --virtual-time-budget=20000 \
        --host-resolver-rules="MAP evil.example 127.0.0.1" --dump-dom "$1" 2> "$work/console"
}
words() { sed -n 's/.*<pre id="out">\(.*\)<\/pre>.*/\1/p'; }
said=$(browse http://127.0.0.1:8978/ | words)
other=$(browse http://evil.example:8978/ | words)
echo "a page of another port: $said"
echo "a page of another site: $other"
expected="image: blocked; form: blocked; read: blocked; delete: blocked; done"
[ "$said" = "$expected" ] && [ "$other" = "$expected" ]
[ "$before" = "$(curl -sf "$url/items?vectors=true")" ]
# A name of the attacker's with the server's address: the page itself is delivered, and none of its requests is answered.
rebound=$(browse http://evil.example:8977/ | grep -c "does not answer as" || true)
echo "under a name of the attacker's, the page is refused: $rebound"
[ "$rebound" -ge 1 ]
# The server's own pages: the search page shows the model and the stored item, /docs lists the routes, and nothing is blocked.
for page in / /docs; do
    browse $url$page > "$work/page"
    if grep -i "content security policy" "$work/console"; then exit 1; fi
    case $page in
        /) grep -q 'id="model">[^<]*[a-z0-9]' "$work/page" ;;
        *) grep -q "/admin/reload" "$work/page" ;;
    esac
    echo "$page works under its policy"
done
