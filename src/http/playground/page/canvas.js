// Draws a picture with the objects that were found in it.

import { paint } from './masks.js';

const MARKED = '#ffffff';
let colours = [];
let unnamed = MARKED;

/** Sets the colours of phrases, and of objects without one. */
export function setColours(ofPhrases, ofUnnamed) {
  colours = ofPhrases;
  unnamed = ofUnnamed;
}

/** The colour of a phrase by its number in the prompt; -1 for objects without one. */
export function colourOf(phrase) {
  return phrase < 0 ? unnamed : colours[phrase % colours.length];
}

function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/** Black or white, whichever is easier to read on a colour. */
function textOn(colour) {
  const [r, g, b] = rgb(colour);
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? '#000000' : '#ffffff';
}

export class Drawing {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.picture = null;
    this.objects = [];
    this.marks = { box: null, points: [], mask: null };
    this.selected = null;
    this.cursor = null;
    this.painted = new WeakMap();
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  /** Pixels of the canvas per pixel of the picture. */
  get scale() {
    return this.canvas.width / (this.picture?.width ?? 1);
  }

  /** The point of the picture at a place of the page. */
  pointAt(event) {
    const frame = this.canvas.getBoundingClientRect();
    const clamp = (value, max) => Math.min(Math.max(value, 0), max);
    return {
      x: clamp((event.clientX - frame.left) / frame.width * this.picture.width, this.picture.width),
      y: clamp((event.clientY - frame.top) / frame.height * this.picture.height, this.picture.height),
    };
  }

  fit() {
    const { width, height } = this.picture;
    const frame = this.canvas.parentElement;
    const room = Math.max(frame.clientWidth, 50);
    const fit = Math.min(room / width, Math.max(window.innerHeight * 0.7, 300) / height);
    const density = window.devicePixelRatio || 1;
    this.canvas.style.width = `${Math.round(width * fit)}px`;
    this.canvas.style.height = `${Math.round(height * fit)}px`;
    this.canvas.width = Math.max(1, Math.round(width * fit * density));
    this.canvas.height = Math.max(1, Math.round(height * fit * density));
  }

  draw() {
    if (!this.picture) return;
    this.fit();
    const { context, canvas } = this;
    context.drawImage(this.picture, 0, 0, canvas.width, canvas.height);
    const line = Math.max(2, Math.round(canvas.width / 350));
    for (const object of this.objects) {
      if (object.mask) context.drawImage(this.#paintedMask(object.mask, colourOf(object.phrase)), 0, 0);
    }
    if (this.marks.mask) context.drawImage(this.#paintedMask(this.marks.mask, MARKED), 0, 0);
    for (const object of this.objects) this.#box(object.box, colourOf(object.phrase), object === this.selected ? 2 * line : line);
    this.#labels(line);
    if (this.marks.box) this.#box(this.marks.box, MARKED, line, true);
    for (const point of this.marks.points) this.#point(point, line);
    if (this.cursor && document.activeElement === canvas) this.#cross(this.cursor, line);
  }

  #paintedMask(mask, colour) {
    const { width, height } = this.canvas;
    const known = this.painted.get(mask);
    if (known && known.width === width && known.colour === colour) return known.image;
    const image = paint(mask, width, height, rgb(colour));
    this.painted.set(mask, { width, colour, image });
    return image;
  }

  #box([x0, y0, x1, y1], colour, line, isDashed = false) {
    const { context, scale } = this;
    context.setLineDash(isDashed ? [4 * line, 3 * line] : []);
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
    context.setLineDash([]);
  }

  /** A label for each box, where it covers no other label if there is such a place. */
  #labels(line) {
    const { context, canvas, scale } = this;
    const size = Math.max(11, Math.round(canvas.width / 65));
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textBaseline = 'middle';
    const placed = [];
    for (const object of this.objects) {
      const [x0, y0, x1, y1] = object.box.map((value) => value * scale);
      const text = `${object.name} ${object.score.toFixed(2)}`;
      const width = context.measureText(text).width + size * 0.6;
      const height = size * 1.35;
      const places = [[x0, y0 - height], [x0, y0 + line], [x0, y1], [x1 - width, y0 - height], [x0, y1 - height], [x1, y0]];
      const inside = places.map(([x, y]) => ({
        x: Math.min(Math.max(x, 0), Math.max(canvas.width - width, 0)),
        y: Math.min(Math.max(y, 0), Math.max(canvas.height - height, 0)),
        width,
        height,
      }));
      const place = inside.find((place) => !placed.some((other) => overlap(place, other))) ?? inside[0];
      placed.push(place);
      const colour = colourOf(object.phrase);
      context.fillStyle = colour;
      context.fillRect(place.x, place.y, place.width, place.height);
      context.fillStyle = textOn(colour);
      context.fillText(text, place.x + size * 0.3, place.y + height / 2 + 1);
    }
  }

  #point({ x, y, positive }, line) {
    const { context, scale } = this;
    context.beginPath();
    context.arc(x * scale, y * scale, 3 * line, 0, 2 * Math.PI);
    context.fillStyle = positive ? '#00b86b' : '#e5484d';
    context.fill();
    context.lineWidth = line;
    context.strokeStyle = '#ffffff';
    context.stroke();
  }

  #cross({ x, y }, line) {
    const { context, scale } = this;
    for (const [colour, width] of [['#000000', 2 * line], ['#ffffff', line]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x * scale - 10 * line, y * scale);
      context.lineTo(x * scale + 10 * line, y * scale);
      context.moveTo(x * scale, y * scale - 10 * line);
      context.lineTo(x * scale, y * scale + 10 * line);
      context.stroke();
    }
  }
}

function overlap(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}
