// @ts-check
// The legend of the map: values by how frequent they are; pressing one shows its points alone.

import { $, button, count, element } from "./dom.js";

/** Values that are listed at once; with more, one searches among them. */
const LISTED = 24;

export class Legend {
  /** @param {(value: unknown) => void} highlight gets the value whose points are shown, or undefined for all */
  constructor(highlight) {
    this.highlight = highlight;
    /** @type {import("./types").Paint["legend"]} */
    this.entries = [];
    /** @type {unknown} */
    this.only = undefined;
    $("legend-search").oninput = () => this.list();
  }

  /** @param {import("./types").Paint["legend"]} entries */
  show(entries) {
    this.entries = entries;
    this.only = undefined;
    $("legend-search").value = "";
    $("legend-search-box").hidden = entries.length <= LISTED;
    this.list();
  }

  list() {
    const wanted = $("legend-search").value.trim().toLowerCase();
    const found = wanted ? this.entries.filter(e => e.text.toLowerCase().includes(wanted)) : this.entries;
    $("legend").replaceChildren(...found.slice(0, LISTED).map(entry => {
      const line = element("li");
      if (entry.value === undefined) line.append(this.dot(entry.colour), element("span", entry.text));
      else {
        const press = button("", () => { this.only = this.only === entry.value ? undefined : entry.value; this.list(); this.highlight(this.only); }, "key");
        press.append(this.dot(entry.colour), element("span", entry.text, "name"), element("span", count(entry.count), "score"));
        press.setAttribute("aria-pressed", String(this.only === entry.value));
        line.append(press);
      }
      return line;
    }));
    const rest = found.length - LISTED;
    $("legend-note").textContent = rest > 0 ? `and ${count(rest)} more values${wanted ? "" : ", in grey; search for one to see its points alone"}` : "";
  }

  /** @param {string} colour */
  dot(colour) {
    const dot = element("span", undefined, "dot");
    dot.style.setProperty("--colour", colour);
    return dot;
  }
}
