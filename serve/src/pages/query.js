// @ts-check
// What is searched with, and the search itself.

import { ask, fetched, itemPath, send } from "./api.js";
import { prepared } from "./uploads.js";

/** @typedef {import("./types").Query} Query */
/** @typedef {import("./types").Item} Item */

/** How far an unlike item moves the query away from itself. */
const AWAY = .6;

/**
 * Searches.  The first search of a query finds its vector and its classes; later ones send the vector only.
 * @param {Query} query
 * @param {{ filter: import("./types").Filter, k: number, exact: boolean, classify: boolean, signal: AbortSignal }} options
 * @returns {Promise<{ hits: Item[], note: string, classes?: Promise<import("./types").Prediction[]> }>} the classes of an item take another request
 */
export async function find(query, { filter, k, exact, classify, signal }) {
  let note = "";
  const hidden = new Set(query.unlike.map(item => item.id));
  const more = k + hidden.size + (query.item ? 1 : 0);
  const body = { filter, k: more, exact };
  let answer, classes;
  if (query.vector) {
    answer = await send("search", { ...body, vector: await moved(query, signal) }, { signal });
  } else if (query.item) {
    if (classify && query.item.image) classes = classesOf(query.item, signal);
    answer = await send("search?vector=true", { ...body, id: query.item.id }, { signal });
  } else if (query.picture) {
    const picture = await prepared(query.picture);
    note = picture.note;
    const form = new FormData();
    form.append("image", picture.blob, "image");
    for (const [name, value] of Object.entries(body)) form.append(name, JSON.stringify(value));
    answer = await ask("search?vector=true" + (classify ? "&top_k=5" : ""), { method: "POST", body: form, signal });
    query.predictions = answer.predictions || [];
  } else return { hits: [], note };
  if (answer.vector && !query.vector) query.vector = answer.vector;
  const own = query.item && query.item.id;
  const hits = answer.hits.filter((/** @type {Item} */ hit) => hit.id !== own && !hidden.has(hit.id)).slice(0, k);
  return { hits, note, classes };
}

/** The classes of an item are those of its thumbnail; without an answer there are none.
 * @param {Item} item @param {AbortSignal} signal */
async function classesOf(item, signal) {
  try {
    const blob = await (await fetched(itemPath(item.id) + "/image", { signal })).blob();
    return (await ask("classify?top_k=5", { method: "POST", headers: { "Content-Type": blob.type }, body: blob, signal })).predictions[0];
  } catch { return []; }
}

/** The query's vector, moved away from the items that the answer should be unlike.
 * @param {Query} query @param {AbortSignal} signal */
async function moved(query, signal) {
  const vector = /** @type {number[]} */ (query.vector);
  if (!query.unlike.length) return vector;
  const others = await Promise.all(query.unlike.map(item => ask(itemPath(item.id) + "?vector=true", { signal })));
  return vector.map((v, i) => v - AWAY * others.reduce((sum, o) => sum + o.vector[i], 0) / others.length);
}

/** Where a vector of length 1 is on the map. @param {number[]} vector @param {import("./types").Plane} plane @returns {[number, number]} */
export function place(vector, plane) {
  const along = (/** @type {number[]} */ axis) => axis.reduce((sum, a, i) => sum + a * vector[i], 0);
  return [along(plane.x) + plane.offset[0], along(plane.y) + plane.offset[1]];
}
