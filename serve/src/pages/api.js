// @ts-check
// Requests to the server.

/** The server cannot be reached or has no time now: the same request may succeed later. */
export class Unavailable extends Error {}

/** The server refused the request. */
export class Refused extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status) { super(message); this.status = status; }
}

let key = sessionStorage.getItem("key") || "";
/** @type {(wrong: boolean) => void} */
let askForKey = () => {};

export const hasKey = () => key !== "";
/** @param {string} given */
export function setKey(given) { key = given; sessionStorage.setItem("key", given); }
/** Sets what happens if the server asks for a key. @param {(wrong: boolean) => void} ask */
export function whenKeyIsNeeded(ask) { askForKey = ask; }

const LATER = [429, 502, 503, 504];

/** @param {string} path @param {RequestInit} [options] */
export async function fetched(path, options = {}) {
  /** @type {Record<string, string>} */
  const headers = { .../** @type {Record<string, string>} */ (options.headers) };
  if (key) headers.Authorization = "Bearer " + key;
  const answer = await fetch(path, { ...options, headers }).catch(error => {
    if (error.name === "AbortError") throw error;
    throw new Unavailable("The server does not answer.");
  });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const message = sentence(body.error ? body.error.message : `the server answered ${answer.status}`);
  if (answer.status === 401) askForKey(key !== "");
  if (LATER.includes(answer.status)) throw new Unavailable(message);
  throw new Refused(message, answer.status);
}

/** @param {string} text */
const sentence = text => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** @param {string} path @param {RequestInit} [options] @returns {Promise<any>} */
export const ask = async (path, options) => (await fetched(path, options)).json();

/** @param {string} path @param {unknown} body @param {RequestInit} [options] @returns {Promise<any>} */
export const send = (path, body, options = {}) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...options });

/** The address of an item. @param {string} id */
export const itemPath = id => "items/" + encodeURIComponent(id);
