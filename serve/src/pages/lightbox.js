// @ts-check
// One item, large, with its metadata and what can be done with it.

import { $, button, element, title } from "./dom.js";
import { thumbnail } from "./pictures.js";

/** @typedef {import("./types").Item} Item */

export class Lightbox {
  /** @param {{ like: (item: Item) => void, unlike: (item: Item) => void, canUnlike: () => boolean }} actions */
  constructor(actions) {
    this.actions = actions;
    /** @type {Item[]} */
    this.items = [];
    this.index = 0;
    /** @type {HTMLDialogElement} */
    this.dialog = $("lightbox");
    this.dialog.addEventListener("keydown", event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && !/** @type {HTMLElement} */ (event.target).closest("input, select")) { event.preventDefault(); this.step(step); }
    });
    // A press beside the picture closes.
    this.dialog.addEventListener("click", event => { if (event.target === this.dialog) this.dialog.close(); });
    $("lightbox-close").onclick = () => this.dialog.close();
    $("lightbox-before").onclick = () => this.step(-1);
    $("lightbox-after").onclick = () => this.step(1);
  }

  /** @param {Item[]} items @param {number} index */
  open(items, index) {
    this.items = items;
    this.index = index;
    this.show();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** @param {number} by */
  step(by) {
    const next = this.index + by;
    if (next < 0 || next >= this.items.length) return;
    this.index = next;
    this.show();
  }

  show() {
    const item = this.items[this.index];
    $("lightbox-title").textContent = title(item);
    $("lightbox-before").disabled = this.index === 0;
    $("lightbox-after").disabled = this.index === this.items.length - 1;
    $("lightbox-count").textContent = `${this.index + 1} of ${this.items.length}`;
    $("lightbox-picture").replaceChildren(thumbnail(item, title(item)));
    const rows = [["id", item.id], ...(item.score === undefined ? [] : [["cosine", item.score.toFixed(4)]]), ...Object.entries(item.metadata).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])];
    $("lightbox-facts").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
    const act = (/** @type {string} */ text, /** @type {(item: Item) => void} */ run) => button(text, () => { this.dialog.close(); run(item); });
    const unlike = act("Not like this", this.actions.unlike);
    unlike.hidden = !this.actions.canUnlike();
    const copy = button("Copy the id", () => navigator.clipboard?.writeText(item.id).then(() => { copy.textContent = "Copied"; }, () => {}));
    $("lightbox-actions").replaceChildren(act("More like this", this.actions.like), unlike, copy);
  }
}
