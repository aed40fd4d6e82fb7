// @ts-check
// Draws the map: the points on the graphics card, what lies over them on a second canvas.

/** @typedef {import("./types").Point} Point */
/** @typedef {import("./map-view.js").View} View */

const VERTEX = `#version 300 es
in vec2 place; in vec4 shade;
uniform vec2 middle, scale; uniform float size;
out vec4 colour;
void main() { gl_Position = vec4((place - middle) * scale, 0, 1); gl_PointSize = size; colour = shade; }`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 colour; out vec4 result;
void main() { float d = length(gl_PointCoord - .5); if (d > .5) discard; result = vec4(colour.rgb * colour.a, colour.a); }`;

/** Whether WebGL runs on a graphics card: browsers imitate one in software. */
function hasGraphicsCard() {
  const gl = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  const names = gl && gl.getExtension("WEBGL_debug_renderer_info");
  const name = gl ? String(gl.getParameter(names ? names.UNMASKED_RENDERER_WEBGL : gl.RENDERER)) : "software";
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|software|basic render/i.test(name);
}

/** Points as discs.  Without a graphics card they are written into the pixels of a plain canvas, which is faster there. */
export class PointLayer {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.number = 0;
    this.places = new Float32Array(0);
    this.shades = new Uint8Array(0);
    /** @type {ImageData | undefined} */
    this.image = undefined;
    /** Called when the graphics card has come back. @type {() => void} */
    this.restored = () => {};
    this.gl = hasGraphicsCard() ? canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true }) : null;
    if (this.gl) this.prepare(this.gl); else this.pen = canvas.getContext("2d");
  }

  /** @param {WebGL2RenderingContext} gl */
  prepare(gl) {
    const program = gl.createProgram();
    for (const [kind, text] of /** @type {[number, string][]} */ ([[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]])) {
      const shader = /** @type {WebGLShader} */ (gl.createShader(kind));
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.uniforms = Object.fromEntries(["middle", "scale", "size"].map(name => [name, gl.getUniformLocation(program, name)]));
    const attribute = (/** @type {string} */ name, /** @type {number} */ parts, /** @type {number} */ type, /** @type {boolean} */ normal) => {
      const buffer = gl.createBuffer(), at = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, parts, type, normal, 0, 0);
      return buffer;
    };
    this.placeBuffer = attribute("place", 2, gl.FLOAT, false);
    this.shadeBuffer = attribute("shade", 4, gl.UNSIGNED_BYTE, true);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.canvas.addEventListener("webglcontextlost", event => event.preventDefault());
    this.canvas.addEventListener("webglcontextrestored", () => { this.prepare(gl); this.upload(this.placeBuffer, this.places); this.upload(this.shadeBuffer, this.shades); this.restored(); });
  }

  /** @param {WebGLBuffer | null | undefined} buffer @param {ArrayBufferView<ArrayBuffer>} data */
  upload(buffer, data) {
    if (!this.gl) return;
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, buffer || null);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, data, this.gl.STATIC_DRAW);
  }

  /** @param {Point[]} points */
  setPoints(points) {
    this.number = points.length;
    this.places = new Float32Array(2 * points.length);
    points.forEach((p, i) => { this.places[2 * i] = p.x; this.places[2 * i + 1] = p.y; });
    this.upload(this.placeBuffer, this.places);
  }

  /** @param {Uint8Array<ArrayBuffer>} shades red, green, blue and opacity of each point */
  setShades(shades) {
    this.shades = shades;
    this.upload(this.shadeBuffer, shades);
  }

  /** @param {View} view @param {number} density device pixels of a CSS pixel */
  draw(view, density) {
    const { canvas, gl } = this, [width, height] = [view.width, view.height].map(v => Math.round(v * density));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const size = pointSize(this.number, view.zoom) * density;
    if (!gl) return this.drawPlain(view, density, size);
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.number || this.shades.length < 4 * this.number || !this.uniforms) return;
    gl.uniform2f(this.uniforms.middle, view.x, view.y);
    gl.uniform2f(this.uniforms.scale, 2 * view.scale / view.width, 2 * view.scale / view.height);
    gl.uniform1f(this.uniforms.size, size);
    gl.drawArrays(gl.POINTS, 0, this.number);
  }

  /** @param {View} view @param {number} density @param {number} size */
  drawPlain(view, density, size) {
    const { pen, canvas: { width, height }, places, number } = this;
    if (!pen || this.shades.length < 4 * number) return;
    if (!this.image || this.image.width !== width || this.image.height !== height) this.image = pen.createImageData(width, height);
    const pixels = new Uint32Array(this.image.data.buffer), colours = new Uint32Array(this.shades.buffer);
    pixels.fill(0);
    const spans = discSpans(size), half = spans.length >> 1, scale = view.scale * density, [left, top] = view.toScreen(0, 0).map(v => v * density);
    // Faint points first: they must not hide others.
    for (const faint of [true, false]) for (let i = 0; i < number; i++) {
      if (this.shades[4 * i + 3] < 128 !== faint) continue;
      const x = Math.round(left + places[2 * i] * scale), y = Math.round(top - places[2 * i + 1] * scale) - half;
      if (x < half || x >= width - half) continue;
      for (let row = 0; row < spans.length; row++) {
        const line = y + row;
        if (line < 0 || line >= height) continue;
        const from = line * width + x;
        for (let at = from - spans[row]; at <= from + spans[row]; at++) pixels[at] = colours[i];
      }
    }
    pen.putImageData(this.image, 0, 0);
  }
}

/** Half the width of each row of a disc. @param {number} size its diameter */
function discSpans(size) {
  const half = Math.max(1, Math.round((size - 1) / 2));
  return Array.from({ length: 2 * half + 1 }, (_, row) => Math.round(Math.sqrt(Math.max(0, (half + .3) ** 2 - (row - half) ** 2))));
}

/** Diameter of a point in CSS pixels: small where there are many, larger as one comes nearer.
 * @param {number} number @param {number} zoom */
export function pointSize(number, zoom) {
  const base = number > 30000 ? 2.2 : number > 6000 ? 3.4 : 6;
  return Math.min(11, base * Math.max(1, zoom) ** .35);
}

/** Edge of a thumbnail on the map, CSS pixels. */
export const THUMBNAIL = 44;

/**
 * What lies over the points.
 * @param {CanvasRenderingContext2D} pen @param {View} view @param {number} density
 * @param {{ near: Point[], picked: Point[], chosen?: Point, query?: [number, number], lasso: [number, number][], thumbnails: Point[],
 *   picture: (id: string) => HTMLImageElement | null, ink: string, paper: string, accent: string }} what
 */
export function drawOver(pen, view, density, what) {
  pen.setTransform(density, 0, 0, density, 0, 0);
  pen.clearRect(0, 0, view.width, view.height);
  for (const point of what.thumbnails) {
    const image = what.picture(point.id);
    if (!image) continue;
    const [left, top] = view.toScreen(point.x, point.y), scale = THUMBNAIL / Math.max(image.naturalWidth, image.naturalHeight);
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    pen.imageSmoothingEnabled = image.naturalWidth > 64;
    pen.drawImage(image, left - width / 2, top - height / 2, width, height);
    pen.strokeStyle = what.paper;
    pen.lineWidth = 1;
    pen.strokeRect(left - width / 2, top - height / 2, width, height);
  }
  const ring = (/** @type {Point} */ point, /** @type {number} */ radius, /** @type {string} */ colour, /** @type {number} */ line) => {
    const [left, top] = view.toScreen(point.x, point.y);
    pen.beginPath();
    pen.arc(left, top, radius, 0, 7);
    pen.lineWidth = line + 2; pen.strokeStyle = what.paper; pen.stroke();
    pen.lineWidth = line; pen.strokeStyle = colour; pen.stroke();
  };
  for (const point of what.near) ring(point, 6, what.ink, 1.5);
  for (const point of what.picked) ring(point, 5, what.accent, 2);
  if (what.chosen) ring(what.chosen, 9, what.ink, 3);
  if (what.query) star(pen, view.toScreen(...what.query), what);
  if (what.lasso.length > 1) {
    pen.beginPath();
    what.lasso.forEach(([left, top]) => pen.lineTo(left, top));
    pen.closePath();
    pen.globalAlpha = .15; pen.fillStyle = what.accent; pen.fill();
    pen.globalAlpha = 1; pen.lineWidth = 2; pen.strokeStyle = what.accent; pen.stroke();
  }
}

/** The query's own place. @param {CanvasRenderingContext2D} pen @param {[number, number]} at @param {{ accent: string, paper: string }} colours */
function star(pen, [left, top], { accent, paper }) {
  pen.beginPath();
  for (let i = 0; i < 10; i++) {
    const angle = Math.PI * (i / 5 - .5), radius = i % 2 ? 5 : 11;
    pen.lineTo(left + radius * Math.cos(angle), top + radius * Math.sin(angle));
  }
  pen.closePath();
  pen.fillStyle = accent; pen.fill();
  pen.lineWidth = 2; pen.strokeStyle = paper; pen.stroke();
}
