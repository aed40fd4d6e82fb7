// @ts-check
// Labelling: select results, give a label by press or key, and see what a classifier learns from it.

import { ask, fetched, send } from "./api.js";
import { $, announce, button, count, element } from "./dom.js";

/** @typedef {import("./types").Item} Item */
/** @typedef {{ id: string, label: string | null }} Change */
/** @typedef {import("./types").Guess} Guess */

/** Items that are labelled with one request, and classified with one. */
const AT_ONCE = 10000;
/** Least certain items that are shown. */
const UNCERTAIN = 24;
/** Milliseconds between looks for what others have labelled. */
const LOOK = 5000;

export class Labelling {
  /**
   * @param {import("./results.js").Results} results
   * @param {{ picked: (ids: Set<string>) => void, showUncertain: (items: Item[], from: number) => void, guessed: (guesses: Map<string, string>) => void,
   *   mapped: () => string[] }} actions `mapped` names the items whose guesses the map shows
   */
  constructor(results, actions) {
    this.results = results;
    this.actions = actions;
    /** @type {Map<string, string>} */
    this.given = new Map();
    /** @type {Map<string, string>} */
    this.guesses = new Map();
    /** @type {Set<string>} */
    this.picked = new Set();
    /** @type {Change[][]} what undoes each change of this page, the last one last */
    this.undoes = [];
    this.version = -1;
    this.last = "";
    results.marks = item => ({ picked: results.picking && this.picked.has(item.id), label: this.given.get(item.id) || "", guess: results.picking ? this.guesses.get(item.id) || "" : "" });
    $("label-toggle").onclick = () => this.toggle(!results.picking);
    $("label-form").onsubmit = (/** @type {Event} */ event) => { event.preventDefault(); this.give($("label-name").value.trim()); };
    $("label-all").onclick = () => this.pickAll();
    $("label-accept").onclick = () => this.accept();
    $("label-remove").onclick = () => this.give(null);
    $("label-undo").onclick = () => this.undo();
    $("label-next").onclick = () => this.next();
    for (const [id, path] of [["export-given", "labels?format=csv"], ["export-all", "labels?format=csv&guesses=true"]]) $(id).onclick = () => this.run(() => download(path));
    document.addEventListener("keydown", event => this.key(event));
    setInterval(() => { if (results.picking && !document.hidden) this.look(); }, LOOK);
  }

  /** Reads the labels. */
  async load() {
    const list = await ask("labels").catch(() => null);
    $("label-toggle").hidden = !list;
    if (list) this.take(list);
    if (list && list.labels.length) this.train().catch(() => {});
  }

  /** @param {{ version: number, labels: Change[] }} list */
  take(list) {
    this.version = list.version;
    this.given = new Map(list.labels.map(({ id, label }) => [id, label || ""]));
    this.show();
  }

  /** Reads the labels again if somebody changed them. */
  async look() {
    const list = await ask("labels").catch(() => null);
    if (list && list.version !== this.version) { this.take(list); this.train().catch(() => {}); }
  }

  /** @param {boolean} on */
  toggle(on) {
    this.results.picking = on;
    $("label-toggle").setAttribute("aria-pressed", String(on));
    $("labels-card").hidden = !on;
    this.pick([]);
    if (on) this.look();
  }

  /** The classes, most frequent first. */
  classes() {
    /** @type {Map<string, number>} */
    const counts = new Map();
    for (const label of this.given.values()) counts.set(label, (counts.get(label) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  }

  show() {
    const classes = this.classes();
    $("label-classes").replaceChildren(...classes.slice(0, 30).map(([label, number], i) => {
      const press = button("", () => this.give(label), "button class");
      if (i < 9) press.append(element("kbd", String(i + 1)), " ");
      press.append(label + " ", element("span", count(number), "score"));
      return press;
    }));
    $("label-names").replaceChildren(...classes.map(([label]) => new Option(label, label)));
    $("label-undo").disabled = !this.undoes.length;
    for (const id of ["label-next", "export-all"]) $(id).disabled = classes.length < 2;
    $("export-given").disabled = !classes.length;
    if (classes.length < 2) $("label-state").textContent = classes.length ? `${count(this.given.size)} labelled as ${classes[0][0]}. A second label is needed to learn from.` : "Select results, type a label, press Enter. With two labels a classifier is trained at once.";
    this.results.remark();
  }

  /** @param {string[]} ids */
  pick(ids) {
    this.picked = new Set(ids);
    $("label-count").textContent = this.picked.size ? `${count(this.picked.size)} selected` : "nothing selected";
    $("label-give").disabled = $("label-remove").disabled = !this.picked.size;
    $("label-accept").disabled = !ids.some(id => this.guesses.has(id) && !this.given.has(id));
    this.results.remark();
    this.actions.picked(this.picked);
  }

  /** A press on a result; with `range`, all between it and the one before. @param {Item} item @param {boolean} range */
  press(item, range) {
    const ids = this.results.items.map(i => i.id), at = ids.indexOf(item.id), from = ids.indexOf(this.last), next = new Set(this.picked);
    if (range && from >= 0) ids.slice(Math.min(at, from), Math.max(at, from) + 1).forEach(id => next.add(id));
    else if (!next.delete(item.id)) next.add(item.id);
    this.last = item.id;
    this.pick([...next]);
  }

  pickAll() { this.pick(this.results.items.map(item => item.id)); }

  /** Gives the selected items a label, or takes theirs away. @param {string | null} label */
  give(label) {
    if (label === "" || !this.picked.size) return;
    return this.change([...this.picked].map(id => ({ id, label })), true);
  }

  /** Gives the selected items the labels that the classifier expects. */
  accept() {
    const changes = [...this.picked].filter(id => this.guesses.has(id) && !this.given.has(id)).map(id => ({ id, label: this.guesses.get(id) || null }));
    if (changes.length) this.change(changes, true);
  }

  undo() {
    const before = this.undoes.pop();
    if (before) this.change(before, false);
  }

  /** @param {Change[]} changes @param {boolean} undoable */
  change(changes, undoable) {
    return this.run(async () => {
      for (let from = 0; from < changes.length; from += AT_ONCE) {
        const part = changes.slice(from, from + AT_ONCE), answer = await send("labels", { labels: part });
        if (undoable) this.undoes.push(answer.previous);
        this.version = answer.version;
        for (const { id, label } of part) if (label) this.given.set(id, label); else this.given.delete(id);
      }
      announce(`${changes.length} ${undoable ? "labelled" : "restored"}`);
      $("label-name").value = "";
      this.pick([]);
      this.show();
      await this.train();
    });
  }

  /** Trains and shows how good the classifier is; returns its answer. @param {number} [uncertain] */
  async train(uncertain = 0) {
    if (this.classes().length < 2) { this.guesses = new Map(); this.show(); this.actions.guessed(this.guesses); return null; }
    const classify = [...new Set([...this.results.items.map(item => item.id), ...this.actions.mapped()])].slice(0, AT_ONCE);
    const probe = await send("probe", { uncertain, classify });
    this.guesses = new Map([...probe.classified, ...probe.uncertain].map((/** @type {Guess} */ g) => [g.id, g.label]));
    const held = probe.held_out, accuracy = held ? `On labelled items that were left out, ${(100 * held.accuracy).toFixed(0)} % are right (${count(held.judged)} judged).` : "One label more in a class, and its accuracy is measured.";
    $("label-state").replaceChildren(`${count(probe.labelled)} labelled in ${probe.classes.length} classes. `, element("b", accuracy, "accuracy"), curve(probe.history));
    this.results.remark();
    this.actions.guessed(this.guesses);
    return probe;
  }

  /** Shows the items that the classifier is least certain of. */
  next() {
    return this.run(async () => {
      const probe = await this.train(this.results.fill(UNCERTAIN));
      if (probe) this.actions.showUncertain(probe.uncertain, probe.looked_at);
    });
  }

  /** @param {() => Promise<unknown>} work */
  async run(work) {
    $("label-error").textContent = "";
    try { await work(); } catch (/** @type {any} */ error) { $("label-error").textContent = error.message; }
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (!this.results.picking || event.ctrlKey || event.metaKey || event.altKey || /** @type {HTMLElement} */ (event.target).closest("input, select, textarea, dialog")) return;
    const chosen = this.classes()[Number(event.key) - 1], focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest(".hit[data-id]") || null);
    if (/^[1-9]$/.test(event.key) && chosen) {
      if (!this.picked.size && focused?.dataset.id) this.pick([focused.dataset.id]);
      this.give(chosen[0]);
    } else if (event.key === "u") this.undo();
    else if (event.key === "a") this.pickAll();
    else return;
    event.preventDefault();
  }
}

/** The accuracy as labels were added. @param {{ labelled: number, accuracy: number }[]} history */
function curve(history) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  if (history.length < 2) { svg.setAttribute("hidden", ""); return svg; }
  const width = 160, height = 36, most = Math.max(...history.map(h => h.labelled));
  const points = [...history].sort((a, b) => a.labelled - b.labelled).map(h => `${(width * h.labelled / most).toFixed(1)},${(height - 2 - (height - 4) * h.accuracy).toFixed(1)}`);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("class", "curve");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Accuracy by number of labels: ${history.slice(-6).map(h => `${h.labelled}: ${Math.round(100 * h.accuracy)} %`).join(", ")}`);
  const line = document.createElementNS(svg.namespaceURI, "polyline");
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  return svg;
}

/** Saves an answer as a file: with a key, a link cannot. @param {string} path */
async function download(path) {
  const link = element("a");
  link.href = URL.createObjectURL(await (await fetched(path)).blob());
  link.download = "labels.csv";
  link.click();
}
