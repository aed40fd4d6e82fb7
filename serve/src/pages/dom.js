// @ts-check
// Helpers for the document.

/** The element with this id. @param {string} id @returns {any} */
export const $ = id => document.getElementById(id);

/**
 * A new element.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag @param {string} [text] @param {string} [name] its class
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

/** A button. @param {string} text @param {() => void} press @param {string} [name] its class */
export function button(text, press, name = "button") {
  const made = element("button", text, name);
  made.type = "button";
  made.onclick = press;
  return made;
}

/** Calls `run` once, `delay` milliseconds after the last call. @param {() => void} run @param {number} delay */
export function settled(run, delay) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(run, delay); };
}

/** What screen readers say. @param {string} text */
export function announce(text) { $("spoken").textContent = text; }

/** Scrolls to an element unless its top is in sight. @param {HTMLElement} target */
export function reveal(target) {
  const top = target.getBoundingClientRect().top;
  if (top >= 0 && top < innerHeight * .6) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  target.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}

/** @param {number} n */
export const count = n => n.toLocaleString("en");

/** The name of an item that a person reads. @param {import("./types").Item} item */
export const title = item => String(item.metadata.label ?? item.metadata.title ?? item.id);
