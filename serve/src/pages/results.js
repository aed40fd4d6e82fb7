// @ts-check
// The grid of results: hits of a search, or all items page by page.

import { $, button, element, title } from "./dom.js";
import { thumbnail } from "./pictures.js";

/** @typedef {import("./types").Item} Item */

export class Results {
  /** @param {{ open: (index: number) => void, more: () => void, drawn?: () => void, pick: (item: Item, range: boolean) => void }} actions */
  constructor(actions) {
    this.actions = actions;
    /** @type {Item[]} */
    this.items = [];
    /** Whether a press selects instead of opening. */
    this.picking = false;
    /** @type {(item: Item) => { picked: boolean, label: string, guess: string }} */
    this.marks = () => ({ picked: false, label: "", guess: "" });
    this.moreButton = button("Show more", actions.more, "button more");
    $("more").append(this.moreButton);
  }

  /** How many items fill whole rows. @param {number} about */
  fill(about) {
    const columns = getComputedStyle($("hits")).gridTemplateColumns.split(" ").filter(Boolean).length || 1;
    return Math.ceil(about / columns) * columns;
  }

  /** Shows places for the pictures of an answer that is awaited, unless there is something to keep. */
  wait() {
    if (this.items.length) return;
    const place = () => { const line = element("li"); line.append(element("span", undefined, "hit waiting")); return line; };
    $("hits").replaceChildren(...Array.from({ length: this.fill(18) }, place));
  }

  /** @param {Item[]} items @param {boolean} isMore whether there are further ones */
  show(items, isMore) {
    // Cards of items that were there keep their place: pictures do not flicker, focus stays.
    const same = this.items.length > 0 && this.items.length <= items.length && this.items.every((item, i) => items[i].id === item.id && items[i].score === item.score);
    const first = same ? this.items.length : 0;
    this.items = items;
    const cards = items.slice(first).map((item, i) => this.card(item, first + i));
    if (same) $("hits").append(...cards); else $("hits").replaceChildren(...cards);
    this.moreButton.hidden = !isMore;
  }

  /** @param {Item} item @param {number} index */
  card(item, index) {
    const line = element("li"), name = title(item), text = element("span", undefined, "text");
    const card = button("", () => {}, "hit");
    card.onclick = event => this.picking ? this.actions.pick(item, event.shiftKey) : this.actions.open(index);
    const score = item.score === undefined ? "" : item.score.toFixed(3);
    text.append(element("b", name), element("span", score ? ", cosine " : " ", "away"), element("span", score || (name === item.id ? "" : item.id), "score"));
    card.append(thumbnail(item), text);
    card.dataset.id = item.id;
    line.append(card);
    this.mark(card, item);
    return line;
  }

  /** @param {HTMLElement} card @param {Item} item */
  mark(card, item) {
    const { picked, label, guess } = this.marks(item);
    card.classList.toggle("picked", picked);
    if (this.picking) card.setAttribute("aria-pressed", String(picked)); else card.removeAttribute("aria-pressed");
    card.querySelector(".tag")?.remove();
    if (!label && !guess) return;
    const tag = element("span", undefined, label ? "tag" : "tag guess");
    tag.append(element("span", label ? "labelled " : "perhaps ", "away"), label || guess);
    card.append(tag);
  }

  /** Shows selections and labels again. */
  remark() {
    for (const card of document.querySelectorAll("#hits .hit[data-id]")) {
      const item = this.items.find(i => i.id === /** @type {HTMLElement} */ (card).dataset.id);
      if (item) this.mark(/** @type {HTMLElement} */ (card), item);
    }
  }
}
