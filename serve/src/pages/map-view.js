// @ts-check
// The map's geometry: which part is in view, and which point is where.

/** @typedef {import("./types").Point} Point */

const MAX_ZOOM = 400;

/** The part of the plane that is in view. */
export class View {
  constructor() {
    /** Middle of the view, in the plane's coordinates. */
    this.x = 0;
    this.y = 0;
    this.zoom = 1;
    /** Size of the canvas in CSS pixels. */
    this.width = 1;
    this.height = 1;
    /** How far the points reach from the middle along each axis. */
    this.reach = [1, 1];
  }

  /** CSS pixels of one unit of the plane; both axes have one scale. */
  get scale() { return this.zoom * Math.min((this.width / 2 - 16) / this.reach[0], (this.height / 2 - 16) / this.reach[1]); }

  /** Makes all points visible at zoom 1. @param {Point[]} points */
  fit(points) {
    const reach = (/** @type {"x" | "y"} */ axis) => points.reduce((most, p) => Math.max(most, Math.abs(p[axis])), .05);
    this.reach = [reach("x"), reach("y")];
  }

  /** @param {number} x @param {number} y @returns {[number, number]} CSS pixels */
  toScreen(x, y) { return [this.width / 2 + (x - this.x) * this.scale, this.height / 2 - (y - this.y) * this.scale]; }

  /** @param {number} left @param {number} top @returns {[number, number]} */
  toPlane(left, top) { return [this.x + (left - this.width / 2) / this.scale, this.y - (top - this.height / 2) / this.scale]; }

  /** Zooms so that what is under a place stays there. @param {number} factor @param {number} left @param {number} top */
  zoomAt(factor, left, top) {
    const [x, y] = this.toPlane(left, top);
    this.zoom = Math.min(MAX_ZOOM, Math.max(.8, this.zoom * factor));
    const [nextX, nextY] = this.toPlane(left, top);
    this.x += x - nextX;
    this.y += y - nextY;
    this.keepInside();
  }

  /** @param {number} right @param {number} down CSS pixels */
  pan(right, down) {
    this.x -= right / this.scale;
    this.y += down / this.scale;
    this.keepInside();
  }

  keepInside() {
    this.x = Math.min(1.1, Math.max(-1.1, this.x));
    this.y = Math.min(1.1, Math.max(-1.1, this.y));
  }

  /** Moves, if needed, so that a point is in sight. @param {Point} point */
  bringIntoSight(point) {
    const [left, top] = this.toScreen(point.x, point.y);
    if (left < 10 || top < 10 || left > this.width - 10 || top > this.height - 10) { this.x = point.x; this.y = point.y; }
  }

  reset() { this.x = this.y = 0; this.zoom = 1; }
}

const CELLS = 128;

/** Finds points by their place: the plane is divided into cells. */
export class Grid {
  /** @param {Point[]} points */
  constructor(points) {
    this.points = points;
    /** @type {Map<number, number[]>} */
    this.cells = new Map();
    points.forEach((p, i) => {
      const at = this.cell(p.x) * CELLS + this.cell(p.y), list = this.cells.get(at);
      if (list) list.push(i); else this.cells.set(at, [i]);
    });
  }

  /** @param {number} v */
  cell(v) { return Math.min(CELLS - 1, Math.max(0, Math.floor((v + 1) / 2 * CELLS))); }

  /** Indices of the points in a rectangle, at most `most`.
   * @param {number} left @param {number} bottom @param {number} right @param {number} top @param {number} [most] */
  within(left, bottom, right, top, most = Infinity) {
    const found = [];
    for (let i = this.cell(left); i <= this.cell(right); i++) for (let j = this.cell(bottom); j <= this.cell(top); j++) {
      for (const at of this.cells.get(i * CELLS + j) || []) {
        const p = this.points[at];
        if (p.x >= left && p.x <= right && p.y >= bottom && p.y <= top) { found.push(at); if (found.length >= most) return found; }
      }
    }
    return found;
  }

  /** Index of the nearest point within a distance, or -1. @param {number} x @param {number} y @param {number} reach */
  nearest(x, y, reach) {
    let best = -1, least = reach * reach;
    for (const at of this.within(x - reach, y - reach, x + reach, y + reach)) {
      const p = this.points[at], d = (p.x - x) ** 2 + (p.y - y) ** 2;
      if (d < least) { least = d; best = at; }
    }
    return best;
  }

  /** Indices of the points in a polygon. @param {[number, number][]} corners */
  inside(corners) {
    if (corners.length < 3) return [];
    const xs = corners.map(c => c[0]), ys = corners.map(c => c[1]);
    return this.within(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)).filter(at => {
      const { x, y } = this.points[at];
      let inside = false;
      for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
        const [ax, ay] = corners[i], [bx, by] = corners[j];
        if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) inside = !inside;
      }
      return inside;
    });
  }
}

/** The nearest point in a direction, for the arrow keys, or -1.
 * @param {Point[]} points @param {number} from @param {[number, number]} direction */
export function neighbourTowards(points, from, [right, up]) {
  const here = points[from] || { x: 0, y: 0 };
  let best = -1, least = Infinity;
  points.forEach((p, i) => {
    const dx = p.x - here.x, dy = p.y - here.y, along = dx * right + dy * up, across = Math.abs(dx * up) + Math.abs(dy * right);
    const cost = along + 2 * across;
    if (i !== from && along > 1e-6 && cost < least) { least = cost; best = i; }
  });
  return best;
}
