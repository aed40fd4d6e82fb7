// @ts-check
// The page /docs: every route of the OpenAPI document, with requests that can be copied and tried.

import { ask, fetched, hasKey, setKey, whenKeyIsNeeded } from "./api.js";
import { examples } from "./docs-examples.js";
import { $, button, element } from "./dom.js";

/** @typedef {import("./docs-examples.js").Example} Example */

/** Text in which `code` is set in backticks. @param {string} text */
function prose(text) {
  return text.split("`").map((part, i) => i % 2 ? element("code", part) : part);
}

/** What a schema allows, as an example. @param {any} schema @param {any} all @returns {unknown} */
function resolve(schema, all, depth = 0) {
  if (!schema || depth > 6) return "…";
  if (schema.$ref) return resolve(all[schema.$ref.split("/").pop()], all, depth + 1);
  const options = schema.oneOf || schema.anyOf;
  if (options) return resolve(options.find((/** @type {any} */ o) => o.type !== "null") || options[0], all, depth + 1);
  const type = Array.isArray(schema.type) ? schema.type.find((/** @type {string} */ t) => t !== "null") : schema.type;
  if (schema.example !== undefined) return schema.example;
  if (schema.enum) return schema.enum.join(" | ");
  if (type === "array") return [resolve(schema.items, all, depth + 1)];
  if (type === "object" && schema.properties) return Object.fromEntries(Object.entries(schema.properties).map(([k, v]) => [k, resolve(v, all, depth + 1)]));
  return type || "any";
}

/** @param {string} heading @param {any} contents @param {any} all */
function content(heading, contents, all) {
  return Object.entries(contents || {}).flatMap(([type, value]) => {
    const shown = element("pre", type.includes("json") ? JSON.stringify(resolve(value.schema, all), null, 2) : "the bytes");
    shown.tabIndex = 0;
    return [element("h3", `${heading} ${type}`), shown];
  });
}

const origin = location.origin + location.pathname.replace(/\/docs\/?$/, "");
const quote = (/** @type {string} */ text) => "'" + text.replaceAll("'", "'\\''") + "'";
const forced = (/** @type {string} */ method, /** @type {Example} */ example) =>
  method === "GET" || (method === "POST" && (example.json !== undefined || example.picture)) ? "" : `-X ${method} `;

/** The request as a curl line. @param {string} method @param {Example} example @param {string} path @param {string} body */
function curl(method, example, path, body) {
  const key = hasKey() ? `-H "Authorization: Bearer $MACRL_API_KEY" ` : "";
  const picture = `data:image/jpeg;base64,'"$(base64 -w0 picture.jpg)"'`;
  const sent = example.json !== undefined ? `--json ${quote(body).replace("PICTURE", () => picture)} ` : !example.picture ? "" : example.field ? `-F ${example.field}=@picture.jpg ` : "--data-binary @picture.jpg -H 'Content-Type: image/jpeg' ";
  return `curl ${forced(method, example)}${key}${sent}${quote(origin + path)}${path.endsWith("/image") ? " -o picture.jpg" : ""}`;
}

/** A small picture, for those who choose none. @returns {Promise<Blob>} */
function standIn() {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  canvas.width = canvas.height = 64;
  if (pen) { pen.fillStyle = "#7db7e8"; pen.fillRect(0, 0, 64, 64); pen.fillStyle = "#c33"; pen.fillRect(12, 28, 40, 16); }
  return new Promise(done => canvas.toBlob(blob => done(blob || new Blob()), "image/png"));
}

/** @param {string} method @param {Example} example */
function exampleOf(method, example) {
  const box = element("div", undefined, "example"), line = element("pre"), out = element("pre");
  const path = element("input"), body = element("textarea"), file = element("input");
  Object.assign(path, { type: "text", value: example.path, spellcheck: false });
  path.setAttribute("aria-label", "Path");
  Object.assign(body, { value: example.json === undefined ? "" : JSON.stringify(example.json, null, 1), rows: 5, spellcheck: false });
  body.setAttribute("aria-label", "Body");
  Object.assign(file, { type: "file", accept: "image/*" });
  file.setAttribute("aria-label", "Picture to send; without one a drawn one is sent");
  line.tabIndex = out.tabIndex = 0;
  out.hidden = true;
  const compact = () => { try { return JSON.stringify(JSON.parse(body.value)); } catch { return body.value; } };
  const update = () => { line.textContent = curl(method, example, path.value, compact()); };
  path.oninput = body.oninput = update;
  update();
  const copy = button("Copy", () => navigator.clipboard?.writeText(line.textContent || "").then(() => { copy.textContent = "Copied"; }, () => {}));
  const send = button(example.writes ? "Try it (changes the server)" : "Try it", () => attempt(method, example, { path: path.value, body: compact(), file: file.files?.[0], out }));
  const row = element("div", undefined, "row");
  row.append(copy, send, ...example.picture ? [file] : []);
  box.append(element("h3", example.title), line, path, ...example.json !== undefined ? [body] : [], row, out);
  return box;
}

/** Sends an example and shows what comes back.
 * @param {string} method @param {Example} example @param {{ path: string, body: string, file?: File, out: HTMLElement }} request */
async function attempt(method, example, { path, body, file, out }) {
  out.hidden = false;
  out.textContent = "…";
  /** @type {RequestInit} */
  const options = { method };
  if (example.json !== undefined) Object.assign(options, { body: body.replace("PICTURE", await dataUri(file || await standIn())), headers: { "Content-Type": "application/json" } });
  else if (example.picture) {
    const blob = file || await standIn();
    if (example.field) { const form = new FormData(); form.append(example.field, blob, file ? file.name : "example"); options.body = form; }
    else Object.assign(options, { body: blob, headers: { "Content-Type": blob.type || "image/unknown" } });
  }
  const since = performance.now();
  try {
    const answer = await fetched(path.replace(/^\//, ""), options), type = answer.headers.get("Content-Type") || "";
    const head = `${answer.status} in ${Math.round(performance.now() - since)} ms\n`;
    if (type.startsWith("image/")) {
      const image = element("img");
      image.alt = "the answer";
      image.src = URL.createObjectURL(await answer.blob());
      out.replaceChildren(head, image);
    } else out.textContent = head + pretty(await answer.text());
  } catch (/** @type {any} */ error) { out.textContent = `${error.status || ""} ${error.message}`.trim(); }
}

/** @param {Blob} blob @returns {Promise<string>} */
const dataUri = blob => new Promise(done => { const reader = new FileReader(); reader.onload = () => done(String(reader.result)); reader.readAsDataURL(blob); });

/** @param {string} text */
function pretty(text) {
  try {
    const short = (/** @type {string} */ _, /** @type {any} */ v) => Array.isArray(v) && v.length > 8 && typeof v[0] === "number" ? [...v.slice(0, 4), `… ${v.length} numbers`] : v;
    return JSON.stringify(JSON.parse(text), short, 2).slice(0, 20000);
  } catch { return text.slice(0, 20000); }
}

/** @param {string} path @param {string} method @param {any} operation @param {any} all @param {Example[]} requests */
function route(path, method, operation, all, requests) {
  const box = element("details"), head = element("summary"), about = element("span", undefined, "about");
  // Some summaries begin with the route, which stands before them.
  about.append(...prose(" " + (operation.summary || "").replace(/^`[A-Z]+ [^`]*`[.:]? ?/, "")));
  head.append(element("b", method, "method"), element("code", path), about);
  box.append(head);
  if (operation.description) { const text = element("p"); text.append(...prose(operation.description)); box.append(text); }
  box.append(...requests.map(request => exampleOf(method, request)));
  if (operation.parameters) {
    const table = element("table");
    for (const p of operation.parameters) {
      const row = element("tr"), what = element("td");
      what.append(...prose(`${p.in}${p.required ? ", required" : ""}: ${p.description || ""}`));
      row.append(element("td", p.name), what);
      table.append(row);
    }
    box.append(element("h3", "Parameters"), table);
  }
  if (operation.requestBody) box.append(...content("Takes", operation.requestBody.content, all));
  for (const [status, answer] of Object.entries(operation.responses || {})) {
    const line = element("p");
    line.append(element("b", status), " ", ...prose(answer.description || ""));
    box.append(line);
    if (status < "300") box.append(...content("Gives", answer.content, all));
  }
  return box;
}

const GROUPS = /** @type {Record<string, string>} */ ({ images: "Images", search: "Search", items: "Items", labels: "Labels", openai: "For OpenAI's clients", server: "Server" });

async function start() {
  $("note").textContent = "";
  const document_ = await ask("openapi.json");
  $("title").textContent = `${document_.info.title} ${document_.info.version}`;
  $("about").replaceChildren(...prose(document_.info.description || ""));
  const first = await ask("items?limit=1").catch(() => ({ items: [] })), model = await ask("v1/models").catch(() => ({ data: [] }));
  const known = examples(first.items[0] ? first.items[0].id : "example");
  for (const request of known["GET /v1/models/{model}"]) request.path = request.path.replace("MODEL", encodeURIComponent(model.data[0] ? model.data[0].id : "MODEL"));
  const all = (document_.components || {}).schemas || {};
  /** @type {Map<string, HTMLElement[]>} */
  const groups = new Map();
  for (const [path, methods] of Object.entries(document_.paths)) for (const [verb, operation] of Object.entries(/** @type {any} */ (methods))) {
    const method = verb.toUpperCase(), tag = (operation.tags || ["other"])[0];
    groups.set(tag, [...groups.get(tag) || [], route(path, method, operation, all, known[`${method} ${path}`] || [])]);
  }
  $("routes").replaceChildren(...[...groups].flatMap(([tag, boxes]) => [element("h2", GROUPS[tag] || tag, "group"), ...boxes]));
}

$("key-form").onsubmit = (/** @type {Event} */ event) => { event.preventDefault(); setKey($("key").value); $("key-form").hidden = true; start(); };
whenKeyIsNeeded(wrong => { $("key-form").hidden = false; $("key-note").textContent = wrong ? "The server refused this key." : ""; });
start().catch(error => { $("note").textContent = error.message; });
