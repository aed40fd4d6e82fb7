// @ts-check
// Filters of searches and of browsing: one control for each field, which takes effect when it changes.

import { $, button, count, element, settled } from "./dom.js";
import { isRange } from "./fields.js";

/** @typedef {import("./types").Field} Field */

/** Fields that get a control, and values that are listed; with more values one types. */
const SHOWN = 6, LISTED = 100;

export class Filters {
  /** @param {() => void} changed */
  constructor(changed) {
    /** @type {import("./types").Filter} */
    this.active = {};
    this.changed = changed;
    $("filters").onsubmit = (/** @type {Event} */ event) => event.preventDefault();
  }

  /** Shows the controls of these fields. @param {Map<string, Field>} fields */
  show(fields) {
    const shown = [...fields.values()].filter(field => field.values.size > 1 && !field.local).slice(0, SHOWN);
    this.clearing = button("Clear filters", () => { this.active = {}; this.show(fields); this.update(); });
    this.clearing.hidden = !Object.keys(this.active).length;
    $("filters").replaceChildren(...shown.map(field => isRange(field) ? this.range(field) : this.values(field)), this.clearing);
    $("filters").hidden = !shown.length;
  }

  update() {
    if (this.clearing) this.clearing.hidden = !Object.keys(this.active).length;
    this.changed();
  }

  /** @param {string} name @param {unknown} condition */
  set(name, condition) {
    if (condition === undefined) delete this.active[name]; else this.active[name] = condition;
    this.update();
  }

  /** @param {Field} field */
  values(field) {
    const box = element("label", field.name, "field"), values = [...field.values];
    if (values.length > LISTED) {
      const input = element("input"), list = element("datalist");
      list.id = "values-of-" + field.name;
      list.append(...values.slice(0, 3000).map(([value]) => new Option(String(value), String(value))));
      input.setAttribute("list", list.id);
      input.setAttribute("aria-label", field.name);
      input.placeholder = `any of ${count(values.length)}`;
      input.onchange = () => { const found = values.find(([v]) => String(v) === input.value); this.set(field.name, found && found[0]); if (!found) input.value = ""; };
      box.append(input, list);
      return box;
    }
    const select = element("select");
    select.setAttribute("aria-label", field.name);
    const order = values.sort((a, b) => typeof a[0] === "number" && typeof b[0] === "number" ? a[0] - b[0] : String(a[0]).localeCompare(String(b[0])));
    select.append(new Option("any", ""), ...order.map(([value]) => new Option(String(value), JSON.stringify(value))));
    select.onchange = () => this.set(field.name, select.value === "" ? undefined : JSON.parse(select.value));
    box.append(select);
    return box;
  }

  /** @param {Field} field */
  range(field) {
    const group = element("fieldset", undefined, "field range"), ends = /** @type {number[]} */ ([...field.values.keys()]);
    const bound = (/** @type {string} */ name, /** @type {number} */ hint) => {
      const input = element("input");
      Object.assign(input, { type: "number", step: "any", placeholder: String(hint) });
      input.setAttribute("aria-label", `${field.name} ${name}`);
      return input;
    };
    const low = bound("from", ends.reduce((a, b) => Math.min(a, b))), high = bound("to", ends.reduce((a, b) => Math.max(a, b)));
    low.oninput = high.oninput = settled(() => {
      const range = { ...(low.value !== "" && { gte: Number(low.value) }), ...(high.value !== "" && { lte: Number(high.value) }) };
      this.set(field.name, Object.keys(range).length ? range : undefined);
    }, 350);
    group.append(element("legend", field.name), low, element("span", "to"), high);
    return group;
  }
}
