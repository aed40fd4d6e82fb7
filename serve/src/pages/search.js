// @ts-check
// The search page: what is asked, what is shown, and the address.

import { Unavailable, ask, itemPath, setKey, whenKeyIsNeeded } from "./api.js";
import { $, announce, button, count, element, reveal, title } from "./dom.js";
import { learn } from "./fields.js";
import { Filters } from "./filters.js";
import { Labelling } from "./labels.js";
import { Lightbox } from "./lightbox.js";
import { ItemMap } from "./map.js";
import { thumbnail } from "./pictures.js";
import { find, place } from "./query.js";
import { Results } from "./results.js";
import { receive } from "./uploads.js";

/** @typedef {import("./types").Item} Item */
/** @typedef {import("./types").Query} Query */

/** Points of the first, quick map, and most points of all. */
const FIRST_POINTS = 2000, MOST_POINTS = 100000;
/** Items of a lasso that are shown. */
const LASSOED = 300;
/** Results at first, and how many "Show more" adds. */
const PAGE = 24;
/** Seconds until the first further try, and most of them. */
const FIRST_WAIT = 1, LONGEST_WAIT = 15;
/** Points of the map that are coloured by guesses, and the name of that field. */
const GUESSED = 5000, GUESS = "learnt label";
/** A best class below this fits badly. */
const FITS = .4;

/** @type {Query | null} */
let query = null;
let browsing = false, wanted = 0, turn = 0, knownClasses = /** @type {string[]} */ ([]), hitsLimit = 1000;
/** @type {string | null} */
let cursor = null;
let controller = new AbortController();
/** @type {import("./types").Plane | undefined} */
let plane;
/** What is searched with on arrival. @type {Item | undefined} */
let example;
/** What was said about the picture, and stays beside the answer. */
let remark = "";
/** Queries with pictures, which the address cannot name. @type {Query[]} */
const pictures = [];

const results = new Results({ open: index => lightbox.open(results.items, index), more: () => { wanted += results.fill(2 * PAGE); refresh(true); }, pick: (item, range) => labelling.press(item, range) });
const lightbox = new Lightbox({
  like: item => { searchItem(item); $("hits-title").focus({ preventScroll: true }); },
  unlike: item => { if (query) { query = { ...query, unlike: [...query.unlike, item] }; showQuery(); refresh(); $("hits-title").focus({ preventScroll: true }); } },
  canUnlike: () => !browsing && !!query,
});
const filters = new Filters(() => refresh());
const map = new ItemMap({ press: point => searchItem(point), lasso: points => showSelection(points) });
const labelling = new Labelling(results, {
  picked: ids => map.setPicked(ids),
  showUncertain: (items, from) => showList(items, "Least certain ", `of ${count(from)} without a label`),
  guessed: guesses => showGuesses(guesses),
  mapped: () => map.points.slice(0, GUESSED).map(p => p.id),
});

/** @param {string} text @param {boolean} [bad] */
function note(text, bad = false) { $("note").textContent = text; $("note").className = bad ? "bad" : ""; }

// Requests that are tried again

const pause = (/** @type {number} */ seconds) => new Promise(done => setTimeout(done, 1000 * seconds));

/** Runs a request until the server answers; a later call replaces it.  What the page shows stays meanwhile.
 * @param {(signal: AbortSignal) => Promise<void>} run @param {() => void} [refused] */
async function attempt(run, refused) {
  const mine = ++turn;
  controller.abort();
  controller = new AbortController();
  $("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => { if (mine === turn) note("Searching …"); }, 250);
  for (let wait = FIRST_WAIT; mine === turn; wait = Math.min(LONGEST_WAIT, 2 * wait)) {
    try { await run(controller.signal); break; } catch (/** @type {any} */ error) {
      if (mine !== turn || error.name === "AbortError") break;
      if (!(error instanceof Unavailable)) { refused?.(); note(error.message, true); break; }
      clearTimeout(slow);
      note(`${error.message} Trying again in ${wait} s …`, true);
      await pause(wait);
    }
  }
  clearTimeout(slow);
  if (mine === turn) $("results").removeAttribute("aria-busy");
}

// Searching and browsing

/** @param {Item} item @param {{ push?: boolean, example?: boolean, still?: boolean }} [how] */
function searchItem(item, { push = true, example = false, still = false } = {}) {
  begin({ name: title(item), item, unlike: [], example });
  if (push) history.pushState({ id: item.id }, "", "?id=" + encodeURIComponent(item.id));
  if (!still) reveal($("results"));
}
/** @param {File} file */
function searchPicture(file) {
  begin({ name: file.name || "pasted picture", picture: file, unlike: [] });
  history.pushState({ picture: pictures.push(/** @type {Query} */ (query)) - 1 }, "", location.pathname);
  reveal($("results"));
}
/** @param {Query} next */
function begin(next) {
  query = next;
  browsing = false;
  wanted = results.fill(PAGE);
  remark = "";
  note("");
  showQuery();
  refresh();
}
function browse() {
  remark = "";
  query = null;
  browsing = true;
  cursor = null;
  wanted = results.fill(PAGE);
  showQuery();
  refresh();
}

/** Asks again for what is shown, with the filters as they are. */
function refresh(more = false) {
  if (!browsing && !query) return;
  results.wait();
  return browsing ? attempt(signal => list(signal, more)) : attempt(search, () => { results.show([], false); showClasses(); map.mark([]); });
}

/** @param {AbortSignal} signal */
async function search(signal) {
  const asked = /** @type {Query} */ (query), since = performance.now();
  const found = await find(asked, { filter: filters.active, k: Math.min(wanted, hitsLimit - 50), exact: $("exact").checked, classify: knownClasses.length > 0, signal });
  if (asked !== query || signal.aborted) return;
  const took = Math.round(performance.now() - since);
  results.show(found.hits, found.hits.length >= wanted && wanted < hitsLimit - 50);
  const filtered = Object.keys(filters.active).length > 0, none = filtered ? "No item passes the filters." : "The index has no other item.";
  note([remark, found.note, found.hits.length ? "" : none].filter(Boolean).join(" "));
  $("hits-title").replaceChildren(`Similar to ${asked.name} `, element("small", `${asked.example ? "an example · " : ""}${took} ms`));
  showClasses();
  map.mark(found.hits.map(h => h.id), plane && asked.vector ? place(asked.vector, plane) : undefined);
  const nearest = found.hits[0];
  announce(nearest ? `${found.hits.length} similar pictures; the nearest is ${title(nearest)}` : none);
  if (found.classes) found.classes.then(classes => { asked.predictions = classes; if (asked === query) showClasses(); });
}

/** @param {AbortSignal} signal @param {boolean} more */
async function list(signal, more) {
  const filter = encodeURIComponent(JSON.stringify(filters.active)), from = more && cursor ? "&cursor=" + encodeURIComponent(cursor) : "";
  const page = await ask(`items?limit=${results.fill(PAGE)}&filter=${filter}${from}`, { signal });
  if (!browsing || signal.aborted) return;
  cursor = page.next;
  results.show(more ? [...results.items, ...page.items] : page.items, page.next !== null);
  note(page.total ? "" : "No item passes the filters.");
  $("hits-title").replaceChildren("All items ", element("small", count(page.total)));
  showClasses();
  map.mark([]);
  announce(`${results.items.length} of ${page.total} items`);
}

/** Shows the items of a lasso. @param {Item[]} items */
function showSelection(items) {
  if (!items.length) return note("The lasso holds no point.");
  showList(items.slice(0, LASSOED), "In the lasso ", count(items.length) + (items.length > LASSOED ? `, the first ${LASSOED} are shown` : ""));
  if (results.picking) labelling.pick(items.map(i => i.id));
}

/** Shows items that no search found. @param {Item[]} items @param {string} heading @param {string} small */
function showList(items, heading, small) {
  turn++;
  query = null;
  browsing = false;
  $("results").removeAttribute("aria-busy");
  showQuery();
  results.show(items, false);
  $("hits-title").replaceChildren(heading, element("small", small));
  note("");
  showClasses();
  map.mark(items.map(i => i.id));
  reveal($("results"));
  announce(`${heading}: ${items.length} items`);
}

/** Colours the map by what the classifier guesses. @param {Map<string, string>} guesses */
function showGuesses(guesses) {
  if (!map.points.length) return;
  for (const point of map.points) {
    const guess = labelling.given.get(point.id) || guesses.get(point.id);
    if (guess) point.metadata[GUESS] = guess; else delete point.metadata[GUESS];
  }
  map.setFields(fieldsOf(map.points));
}

/** @param {import("./types").Point[]} points */
function fieldsOf(points) {
  const fields = learn(points), guess = fields.get(GUESS);
  if (guess) guess.local = true;
  return fields;
}

// What the page shows of the query

/** @type {string | undefined} */
let previewUrl;
function showQuery() {
  if (previewUrl) URL.revokeObjectURL(previewUrl);
  previewUrl = undefined;
  $("preview").hidden = !query;
  $("preview").replaceChildren(...query ? [preview(query)] : []);
  $("hint").replaceChildren(...query ? [element("b", query.name), element("br"), "Drop, paste or pick another"] : [element("b", "Drop a picture"), " or choose a sample to see similar ones. Pasting works, too."]);
  const unlike = query ? query.unlike : [];
  $("unlike").hidden = !unlike.length;
  $("unlike").replaceChildren(...unlike.map(item => button(`not like ${title(item)} ✕`, () => { if (query) { query = { ...query, unlike: query.unlike.filter(i => i !== item) }; showQuery(); refresh(); } })));
  for (const sample of document.querySelectorAll("button.sample")) sample.setAttribute("aria-pressed", String(!!query?.item && /** @type {HTMLElement} */ (sample).dataset.id === query.item.id));
}
/** @param {Query} asked */
function preview(asked) {
  if (asked.item) return thumbnail(asked.item, asked.name);
  const image = element("img");
  image.alt = asked.name;
  image.onerror = () => image.replaceWith(element("span", asked.name, "name"));
  image.src = previewUrl = URL.createObjectURL(/** @type {Blob} */ (asked.picture));
  return image;
}

function showClasses() {
  const found = query && query.predictions || [];
  $("classes-card").hidden = !found.length;
  const best = found[0], poor = best && best.score < FITS;
  $("classes-fit").hidden = !poor;
  if (poor) $("classes-fit").textContent = `None of the ${knownClasses.length} classes that it knows fits well.`;
  $("classes").replaceChildren(...found.map(c => {
    const line = element("li"), part = (100 * c.score).toFixed(1);
    line.style.setProperty("--part", part + "%");
    line.append(element("span", c.label), element("span", part + " %", "score"));
    return line;
  }));
  const shown = knownClasses.slice(0, 12).join(", ");
  $("classes-known").textContent = `Whatever the picture shows, it chooses among ${knownClasses.length} classes: ${shown}${knownClasses.length > 12 ? " …" : ""}.`;
}

/** @param {Item[]} points */
function showSamples(points) {
  const pictured = points.filter(p => p.image);
  // Multiples of the golden ratio: even steps would meet one class only where the classes alternate.
  const some = [...new Set(Array.from({ length: 10 }, (_, i) => pictured[Math.floor((.618034 * (i + .5)) % 1 * pictured.length)]))].filter(Boolean);
  $("samples-box").hidden = !some.length;
  $("samples").replaceChildren(...some.map(item => {
    const sample = button("", () => searchItem(item), "sample");
    sample.append(thumbnail(item));
    sample.dataset.id = item.id;
    sample.setAttribute("aria-label", `Sample: ${title(item)}`);
    sample.title = title(item);
    return sample;
  }));
  return some;
}

function showEmpty() {
  const command = `macrl-serve ingest --url ${location.origin + location.pathname.replace(/\/$/, "")} ~/photos`;
  const copy = button("Copy", () => navigator.clipboard?.writeText(command).then(() => { copy.textContent = "Copied"; }, () => {}));
  $("empty").replaceChildren(element("p", "The index is empty. This command fills it with a folder of pictures:"), element("pre", command), copy, element("p", "Replace ~/photos with your folder. The page looks again every few seconds.", "soft"));
  $("empty").hidden = false;
  $("samples-box").hidden = true;
  $("hits").replaceChildren();
  results.moreButton.hidden = true;
}

// Arriving

/** @param {import("./types").Point[]} points @param {number} total @param {number} share */
function showMap(points, total, share) {
  const fields = fieldsOf(points);
  map.show(points, fields);
  const part = points.length < total ? `${count(points.length)} of ${count(total)} items, spread evenly` : `all ${count(total)} items`;
  $("map-note").textContent = `${part}; this flat view keeps ${Math.round(100 * share)} % of the variance`;
  return fields;
}

/** @param {string} wantedPoints */
async function loadMap(wantedPoints) {
  const body = await ask("map?points=" + wantedPoints);
  plane = body.plane || undefined;
  filters.show(showMap(body.points, body.total, body.explained[0] + body.explained[1]));
  if (query?.vector && plane) map.mark([...map.near], place(query.vector, plane));
  return body;
}

async function start() {
  results.wait();
  await attempt(async () => {
    const info = await ask("info");
    knownClasses = Array.isArray(info.model.labels) ? info.model.labels : [];
    hitsLimit = info.limits.hits_per_search;
    $("model").textContent = `${info.model.name} · ${info.model.dim} numbers an image · ${count(info.index.items)} items · ${info.device}`;
    $("exact-box").hidden = !info.index.approximate_items;
    $("empty").hidden = true;
    if (!info.index.items) { showEmpty(); setTimeout(look, 5000); return; }
    const body = await loadMap(String(FIRST_POINTS));
    const samples = showSamples(body.points);
    if (info.index.labels) labelling.load();
    note("");
    example = samples[0] || body.points[0];
    queueMicrotask(() => { restore(example); if (body.total > body.points.length) setTimeout(() => loadMap(String(MOST_POINTS)).catch(() => {}), 300); });
  }, () => results.show([], false));
}
/** Whether the index is still empty. */
async function look() {
  const info = await ask("info").catch(() => null);
  if (info?.index.items) start(); else setTimeout(look, 5000);
}

/** Shows what the address names, or an example. @param {Item} [item] */
async function restore(item) {
  const asked = new URLSearchParams(location.search), state = history.state || {};
  if (asked.has("browse")) return browse();
  const id = asked.get("id");
  if (id !== null) return attempt(async () => { const named = await ask(itemPath(id)); queueMicrotask(() => searchItem(named, { push: false, still: true })); }, () => results.show([], false));
  if (pictures[state.picture]) return begin(pictures[state.picture]);
  if (item) searchItem(item, { push: false, example: true, still: true });
}

addEventListener("popstate", () => { lightbox.dialog.close(); restore(example); });
$("browse").onclick = (/** @type {Event} */ event) => { event.preventDefault(); history.pushState({}, "", "?browse"); browse(); reveal($("results")); };
$("exact").onchange = () => refresh();
$("key-form").onsubmit = (/** @type {Event} */ event) => {
  event.preventDefault();
  setKey($("key").value);
  $("key-form").hidden = true;
  $("key-note").textContent = "";
  note("");
  start();
};
whenKeyIsNeeded(wrong => {
  $("key-form").hidden = false;
  $("key-note").textContent = wrong ? "The server refused this key." : "";
  $("key").focus();
});
receive(searchPicture, text => { remark = text; note(text, true); });
start();
