// @ts-check
// The fields of the items' metadata, and colours for their values.

/** @typedef {import("./types").Field} Field */
/** @typedef {import("./types").Point} Point */
/** @typedef {import("./types").Paint} Paint */

/** Numbers with more values than this are a range. */
const FEW = 12;
/** Values that get a colour of their own. */
const COLOURED = 24;

/** The fields that group items, from the points of the map. @param {Point[]} points @returns {Map<string, Field>} */
export function learn(points) {
  /** @type {Map<string, Field>} */
  const fields = new Map();
  for (const point of points) for (const [name, value] of Object.entries(point.metadata)) {
    if (typeof value !== "string" && typeof value !== "number" && typeof value !== "boolean") continue;
    let field = fields.get(name);
    if (!field) fields.set(name, field = { name, numeric: true, values: new Map() });
    field.numeric &&= typeof value === "number";
    field.values.set(value, (field.values.get(value) || 0) + 1);
  }
  for (const [name, field] of fields) {
    // A field whose values are nearly all different, as a file's name, groups nothing.
    if (!field.numeric && field.values.size > Math.max(40, points.length / 4)) fields.delete(name);
    else field.values = new Map([...field.values].sort((a, b) => b[1] - a[1]));
  }
  return fields;
}

/** Whether a field is filtered by a range. @param {Field} field */
export const isRange = field => field.numeric && field.values.size > FEW;

/** @param {number} hue in degrees @param {boolean} dark @returns {[number, number, number]} red, green and blue in 0..=255 */
function colour(hue, dark, saturation = .62) {
  const light = dark ? .66 : .44, reach = saturation * Math.min(light, 1 - light);
  const part = (/** @type {number} */ n) => { const k = (n + hue / 30) % 12; return Math.round(255 * (light - reach * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); };
  return [part(0), part(8), part(4)];
}
const css = (/** @type {number[]} */ rgb) => `rgb(${rgb.join(" ")})`;
/** @param {boolean} dark @returns {[number, number, number]} */
const grey = dark => dark ? [125, 133, 146] : [140, 147, 158];

/**
 * Colours by a field.  The most frequent values have colours of their own, all others are grey.
 * @param {Field | undefined} field @param {boolean} dark @returns {Paint}
 */
export function paint(field, dark) {
  if (!field) { const one = colour(215, dark); return { of: () => one, legend: [] }; }
  const name = field.name;
  if (isRange(field)) {
    const all = /** @type {number[]} */ ([...field.values.keys()]), low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    const hue = (/** @type {number} */ v) => 260 - 220 * (v - low) / (high - low || 1);
    const steps = [low, (low + high) / 2, high].map(v => ({ text: String(+v.toPrecision(4)), colour: css(colour(hue(v), dark)), count: 0 }));
    return { of: p => { const v = p.metadata[name]; return typeof v === "number" ? colour(hue(v), dark) : grey(dark); }, legend: steps };
  }
  /** @type {Map<unknown, [number, number, number]>} */
  const colours = new Map();
  for (const value of field.values.keys()) colours.set(value, colours.size < COLOURED ? colour((colours.size * 137.5) % 360, dark) : grey(dark));
  const legend = [...field.values].map(([value, count]) => ({ text: String(value), value, colour: css(colours.get(value) || grey(dark)), count }));
  return { of: p => colours.get(p.metadata[name]) || grey(dark), legend };
}
