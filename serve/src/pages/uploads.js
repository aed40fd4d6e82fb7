// @ts-check
// Pictures of the user's: dropped, pasted or picked; large ones are shrunk before they are sent.

import { $ } from "./dom.js";

/** Pixels and bytes above which a picture is shrunk.  Encoders look at far fewer pixels. */
const LARGE_PIXELS = 16e6, LARGE_BYTES = 8 << 20;
/** Longest edge after shrinking. */
const EDGE = 2048;

/** Extensions of pictures for which browsers know no type. */
const PICTURES = /\.(heic|heif|avif|jxl|tiff?|bmp|webp|p[bgnp]m|dng|cr[23w]|nef|arw|raf|orf|rw2|raw)$/i;

/** @param {File} file */
const isPicture = file => file.type.startsWith("image/") || PICTURES.test(file.name);

/**
 * Receives pictures.
 * @param {(picture: File) => void} take gets a picture
 * @param {(text: string) => void} tell gets a sentence about what cannot be searched with, or was left out
 */
export function receive(take, tell) {
  const drop = $("drop");
  /** @param {Iterable<File>} files */
  const choose = files => {
    const all = [...files], pictures = all.filter(isPicture);
    if (!all.length) return;
    if (!pictures.length) return tell(`“${all[0].name}” is not a picture: expected a JPEG, PNG, WebP, GIF, TIFF or BMP file.`);
    take(pictures[0]);
    if (all.length > 1) tell(`One picture is searched with at a time: “${pictures[0].name}” was taken, ${all.length - 1} more left out.`);
  };
  drop.onclick = () => $("file").click();
  $("file").onchange = (/** @type {any} */ event) => { choose(event.target.files); event.target.value = ""; };
  document.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", event => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", event => {
    event.preventDefault();
    drop.classList.remove("over");
    const data = event.dataTransfer;
    if (data && data.files.length) choose(data.files);
    else if (data && data.types.length) tell(LINK);
  });
  document.addEventListener("paste", event => {
    const data = event.clipboardData;
    if (!data || /** @type {HTMLElement} */ (event.target).closest("input, textarea")) return;
    if (data.files.length) return choose(data.files);
    const text = data.getData("text").trim();
    if (/^(https?:|data:|www\.)/i.test(text)) tell(LINK);
    else if (text) tell("Text was pasted: this page searches with pictures. Copy a picture and paste that.");
  });
}

const LINK = "That is a link: this server fetches no addresses. Save the picture and drop its file, or copy the picture itself and paste that.";

/**
 * The picture as it is sent.
 * @param {Blob} picture
 * @returns {Promise<{ blob: Blob, note: string }>} the note says if it was shrunk
 */
export async function prepared(picture) {
  let bitmap;
  try { bitmap = await createImageBitmap(picture); } catch { return { blob: picture, note: "" }; }
  const { width, height } = bitmap, pixels = width * height;
  if (pixels <= LARGE_PIXELS && picture.size <= LARGE_BYTES) { bitmap.close(); return { blob: picture, note: "" }; }
  const scale = Math.min(1, EDGE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height].map(v => Math.max(1, Math.round(v * scale)));
  const pen = canvas.getContext("2d");
  if (!pen) return { blob: picture, note: "" };
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise(done => canvas.toBlob(done, "image/jpeg", .92));
  if (!blob) return { blob: picture, note: "" };
  return { blob, note: `This picture of ${Math.round(pixels / 1e6)} megapixels was shrunk to ${canvas.width} × ${canvas.height} before it was sent.` };
}
