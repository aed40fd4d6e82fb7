// @ts-check
// Thumbnails of items.

import { fetched, hasKey, itemPath } from "./api.js";
import { element } from "./dom.js";

/** An address that an image element can load.  With a key, the request needs a header, which `src` cannot send. @param {string} id */
export async function address(id) {
  const path = itemPath(id) + "/image";
  return hasKey() ? URL.createObjectURL(await (await fetched(path)).blob()) : path;
}

/** A picture that shows that it is loading, and says so if it cannot be loaded.
 * @param {import("./types").Item} item @param {string} [alt] */
export function thumbnail(item, alt = "") {
  const box = element("span", undefined, "picture loading");
  if (!item.image) { box.className = "picture none"; box.textContent = "no picture"; return box; }
  const image = element("img");
  image.alt = alt;
  image.decoding = "async";
  image.onload = () => { box.classList.remove("loading"); if (image.naturalWidth <= 96 && image.naturalHeight <= 96) image.classList.add("tiny"); };
  image.onerror = () => { box.className = "picture none"; box.replaceChildren("not loaded"); };
  box.append(image);
  if (!hasKey()) image.loading = "lazy";
  address(item.id).then(src => { image.src = src; }, () => image.dispatchEvent(new Event("error")));
  return box;
}

const KEPT = 600, AT_ONCE = 8;

/** Pictures for the map: loaded a few at a time, the least recently used forgotten. */
export class PictureCache {
  /** @param {() => void} changed called when a picture has been loaded */
  constructor(changed) {
    this.changed = changed;
    /** @type {Map<string, HTMLImageElement | null>} */
    this.kept = new Map();
    this.loading = 0;
  }

  /** The picture of an item if it is here; otherwise it is loaded, if there is room. @param {string} id */
  get(id) {
    const found = this.kept.get(id);
    if (found !== undefined) {
      this.kept.delete(id);
      this.kept.set(id, found);
      return found && found.complete && found.naturalWidth ? found : null;
    }
    if (this.loading < AT_ONCE) this.load(id);
    return null;
  }

  /** @param {string} id */
  load(id) {
    const image = new Image();
    const done = () => { this.loading--; this.changed(); };
    image.onload = done;
    image.onerror = () => { this.kept.set(id, null); done(); };
    this.loading++;
    this.kept.set(id, image);
    if (this.kept.size > KEPT) this.kept.delete(/** @type {string} */ (this.kept.keys().next().value));
    address(id).then(src => { image.src = src; }, () => image.dispatchEvent(new Event("error")));
  }
}
