// bench/serve_keepalive.py with Node's fetch (undici): connections survive every answer that is sent before the body is read.
//
//     node bench/serve_keepalive.mjs http://127.0.0.1:8080 [ROUNDS] [KEY]
const [url, rounds = "100", key] = process.argv.slice(2);
const own = key ? { authorization: `Bearer ${key}` } : {};
const png = { "content-type": "image/png" };
const body = Buffer.alloc(150_000);
const kinds = [
  [415, "POST", "/embed", { ...own, "content-type": "text/plain" }],
  [415, "POST", "/embed", { ...own, ...png, "content-encoding": "compress" }],
  [404, "POST", "/nothing", { ...own, ...png }],
  [404, "PUT", "/items/a/b.png", { ...own, ...png }],
  [405, "PUT", "/embed", { ...own, ...png }],
  [405, "POST", "/health", png],
];
if (key) kinds.push([401, "POST", "/embed", png], [401, "POST", "/v1/embeddings", png]);
async function* chunked() {
  for (let start = 0; start < body.length; start += 50_000) yield body.subarray(start, start + 50_000);
}
let sent = 0;
const faults = [];
for (const [status, method, path, headers] of kinds) {
  for (const stream of [false, true]) {
    for (let round = 0; round < Number(rounds); round++) {
      const what = `${status} ${method} ${path}${stream ? " chunked" : ""}`;
      try {
        sent += 2;
        const init = stream ? { body: chunked(), duplex: "half" } : { body };
        const answer = await fetch(url + path, { method, headers, ...init });
        await answer.arrayBuffer();
        if (answer.status !== status) faults.push(`${what}: ${answer.status}`);
        const next = await fetch(url + "/health");
        await next.arrayBuffer();
        if (next.status !== 200) faults.push(`${what}: the next request`);
      } catch (error) {
        faults.push(`${what}: ${error.message} ${error.cause ?? ""}`);
      }
    }
  }
}
console.log(`undici ${process.versions.undici ?? ""}: ${sent} requests, ${faults.length} lost`);
faults.slice(0, 20).forEach((fault) => console.log("  " + fault));
process.exit(faults.length ? 1 : 0);
