// @ts-check
// The map of the items: zoom, pan, lasso, and a search from a point.

import { $, announce, element, title } from "./dom.js";
import { paint } from "./fields.js";
import { Legend } from "./legend.js";
import { PointLayer, drawOver } from "./map-draw.js";
import { Grid, View, neighbourTowards } from "./map-view.js";
import { PictureCache, thumbnail } from "./pictures.js";

/** @typedef {import("./types").Point} Point */

/** Thumbnails are drawn if at most so many points are in view. */
const NEAR_ENOUGH = 160;
/** A pointer that moved less, in CSS pixels, has pressed. */
const PRESS = 5;
/** Reach of a press, CSS pixels. */
const REACH = 18;
const ARROWS = /** @type {Record<string, [number, number]>} */ ({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] });

export class ItemMap {
  /** @param {{ press: (point: Point) => void, lasso: (points: Point[]) => void }} actions */
  constructor(actions) {
    this.actions = actions;
    /** @type {Point[]} */
    this.points = [];
    this.grid = new Grid([]);
    this.view = new View();
    /** @type {HTMLCanvasElement} */
    this.canvas = $("canvas");
    this.layer = new PointLayer($("points"));
    this.layer.restored = () => this.draw();
    this.pen = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this.pictures = new PictureCache(() => this.draw());
    this.legend = new Legend(value => { this.only = value; this.shade(); });
    /** @type {Map<string, import("./types").Field>} */
    this.fields = new Map();
    this.paint = paint(undefined, false);
    /** @type {unknown} */
    this.only = undefined;
    /** Ids of the current neighbours, and their points. */
    this.near = new Set();
    /** @type {Point[]} */
    this.nearPoints = [];
    this.picked = new Set();
    /** @type {Point[]} */
    this.pickedPoints = [];
    /** @type {[number, number] | undefined} */
    this.query = undefined;
    this.chosen = -1;
    this.lassoing = false;
    /** @type {[number, number][]} */
    this.lasso = [];
    /** @type {Map<number, [number, number]>} places of the pointers that are down */
    this.pointers = new Map();
    this.moved = 0;
    this.waiting = false;
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.onpointerdown = event => this.down(event);
    canvas.onpointermove = event => this.move(event);
    canvas.onpointerup = event => this.up(event);
    canvas.onpointercancel = event => { this.pointers.delete(event.pointerId); this.lasso = []; this.draw(); };
    canvas.onpointerleave = canvas.onblur = () => this.choose(-1);
    canvas.onkeydown = event => this.key(event);
    canvas.ondblclick = event => { event.preventDefault(); this.view.zoomAt(2, ...this.at(event)); this.draw(); };
    canvas.addEventListener("wheel", event => {
      // A page that scrolls past the map must not be caught by it.
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
      event.preventDefault();
      this.view.zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? .05 : .002)), ...this.at(event));
      this.draw();
    }, { passive: false });
    const zoom = (/** @type {number} */ factor) => { this.view.zoomAt(factor, this.view.width / 2, this.view.height / 2); this.draw(); };
    $("zoom-in").onclick = () => zoom(1.6);
    $("zoom-out").onclick = () => zoom(1 / 1.6);
    $("zoom-all").onclick = () => { this.view.reset(); this.draw(); };
    $("lasso").onclick = () => this.setLasso(!this.lassoing);
    $("colour").onchange = () => this.recolour();
    this.dark.addEventListener("change", () => this.recolour());
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** @param {boolean} on */
  setLasso(on) {
    this.lassoing = on;
    $("lasso").setAttribute("aria-pressed", String(on));
    this.canvas.classList.toggle("lassoing", on);
  }

  /** @param {Point[]} points @param {Map<string, import("./types").Field>} fields */
  show(points, fields) {
    this.points = points;
    this.grid = new Grid(points);
    this.chosen = -1;
    this.nearPoints = this.those(this.near);
    this.pickedPoints = this.those(this.picked);
    $("map-card").hidden = points.length < 3;
    this.view.fit(points);
    this.layer.setPoints(points);
    this.setFields(fields);
  }

  /** @param {Map<string, import("./types").Field>} fields */
  setFields(fields) {
    this.fields = fields;
    const select = $("colour"), names = [...fields.keys()], before = select.value;
    select.replaceChildren(new Option("one colour", ""), ...names.map(n => new Option(n, n)));
    select.value = names.includes(before) ? before : names.includes("label") ? "label" : names.find(n => !fields.get(n)?.numeric) || "";
    this.recolour();
  }

  recolour() {
    this.paint = paint(this.fields.get($("colour").value), this.dark.matches);
    this.only = undefined;
    this.legend.show(this.paint.legend);
    this.shade();
  }

  /** Colours the points; all but those of one value are faint, if it was chosen in the legend. */
  shade() {
    const field = $("colour").value, shades = new Uint8Array(4 * this.points.length);
    this.points.forEach((p, i) => {
      const on = this.only === undefined || p.metadata[field] === this.only;
      shades.set(on ? this.paint.of(p) : [128, 128, 128], 4 * i);
      shades[4 * i + 3] = on ? 225 : 22;
    });
    this.layer.setShades(shades);
    this.draw();
  }

  /** Rings the neighbours of the current query and marks its own place. @param {string[]} ids @param {[number, number]} [query] */
  mark(ids, query) {
    this.near = new Set(ids);
    this.nearPoints = this.those(this.near);
    this.query = query;
    this.draw();
  }

  /** @param {Set<string>} ids */
  setPicked(ids) { this.picked = ids; this.pickedPoints = this.those(ids); this.draw(); }

  /** Draws with the next frame. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.drawNow(); });
  }

  drawNow() {
    const { view, canvas } = this, density = devicePixelRatio;
    if (!canvas.clientWidth) return;
    view.width = canvas.clientWidth;
    view.height = canvas.clientHeight;
    const [width, height] = [view.width, view.height].map(v => Math.round(v * density));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    this.layer.draw(view, density);
    const [left, bottom] = view.toPlane(0, view.height), [right, top] = view.toPlane(view.width, 0);
    const seen = this.grid.within(left, bottom, right, top, NEAR_ENOUGH + 1);
    const thumbnails = seen.length > NEAR_ENOUGH ? [] : seen.map(i => this.points[i]).filter(p => p.image && this.shown(p));
    const style = getComputedStyle(document.documentElement), colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    drawOver(this.pen, view, density, {
      near: this.nearPoints, picked: this.pickedPoints, chosen: this.points[this.chosen], query: this.query, lasso: this.lasso, thumbnails,
      picture: id => this.pictures.get(id), ink: colour("--ink"), paper: colour("--card"), accent: colour("--accent"),
    });
  }

  /** @param {Point} point */
  shown(point) { return this.only === undefined || point.metadata[$("colour").value] === this.only; }

  /** @param {Set<string>} ids */
  those(ids) { return ids.size ? this.points.filter(p => ids.has(p.id)) : []; }

  /** @param {MouseEvent} event @returns {[number, number]} */
  at(event) { const box = this.canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; }

  /** @param {[number, number]} at */
  nearest(at) { return this.grid.nearest(...this.view.toPlane(...at), REACH / this.view.scale); }

  /** @param {PointerEvent} event */
  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.at(event));
    this.moved = this.pointers.size > 1 ? Infinity : 0;
    this.lasso = (this.lassoing || event.shiftKey) && this.pointers.size === 1 ? [this.at(event)] : [];
  }

  /** @param {PointerEvent} event */
  move(event) {
    const at = this.at(event), before = this.pointers.get(event.pointerId);
    if (!before) { if (event.pointerType === "mouse") this.choose(this.nearest(at)); return; }
    this.moved += Math.hypot(at[0] - before[0], at[1] - before[1]);
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    this.pointers.set(event.pointerId, at);
    if (this.lasso.length) this.lasso.push(at);
    else if (others.length) {
      const [, other] = others[0], spread = (/** @type {[number, number]} */ p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
      this.view.zoomAt(spread(at) / Math.max(1, spread(before)), (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
    } else if (this.moved > PRESS) {
      this.choose(-1);
      this.view.pan(at[0] - before[0], at[1] - before[1]);
    }
    this.draw();
  }

  /** @param {PointerEvent} event */
  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const corners = this.lasso;
    this.lasso = [];
    if (this.moved <= PRESS) {
      const found = this.nearest(this.at(event));
      if (found >= 0) { this.choose(found); this.actions.press(this.points[found]); }
    } else if (corners.length > 2) {
      const found = this.grid.inside(corners.map(c => this.view.toPlane(...c))).map(i => this.points[i]).filter(p => this.shown(p));
      this.setLasso(false);
      this.actions.lasso(found);
    }
    this.draw();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { view } = this, step = ARROWS[event.key];
    const zoom = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 }[event.key];
    if (event.key === "Enter" && this.points[this.chosen]) this.actions.press(this.points[this.chosen]);
    else if (zoom) { const p = this.points[this.chosen]; view.zoomAt(zoom, ...(p ? view.toScreen(p.x, p.y) : /** @type {[number, number]} */ ([view.width / 2, view.height / 2]))); }
    else if (event.key === "0") view.reset();
    else if (event.key === "Escape" && this.lassoing) this.setLasso(false);
    else if (step && this.points.length) {
      const next = neighbourTowards(this.points, this.chosen, step);
      if (next >= 0) { view.bringIntoSight(this.points[next]); this.choose(next, true); }
    } else return;
    event.preventDefault();
    this.draw();
  }

  /** Shows what a point is. @param {number} index @param {boolean} [speak] */
  choose(index, speak) {
    if (index === this.chosen && !speak) return;
    this.chosen = index;
    const point = this.points[index], tip = $("tip");
    tip.hidden = !point;
    if (point) {
      const { view } = this, [left, top] = view.toScreen(point.x, point.y), atRight = left > view.width / 2;
      tip.style.left = atRight ? "" : left + 14 + "px";
      tip.style.right = atRight ? view.width - left + 14 + "px" : "";
      tip.style.top = Math.max(0, Math.min(top, view.height - 150)) + "px";
      tip.replaceChildren(...(point.image ? [thumbnail(point)] : []), element("div", title(point)), ...(title(point) === point.id ? [] : [element("div", point.id, "score")]));
      if (speak) announce(`${title(point)}, ${point.id}`);
    }
    this.draw();
  }
}
