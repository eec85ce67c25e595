// One prompt on the picture: what was found, what counts of it, and the object that is marked by hand.

import { Drawing, colourOf } from './canvas.js';

const STAGES = {
  image_features: 'Detector: image',
  text_features: 'Detector: prompt',
  queries: 'Detector: objects',
  image_embeddings: 'Segmenter: image',
  masks: 'Segmenter: masks',
};
/** A slider moves many times a second; masks are requested when it rests. */
const REST_MS = 200;

function iou([a0, a1, a2, a3], [b0, b1, b2, b3]) {
  const area = (x0, y0, x1, y1) => Math.max(x1 - x0, 0) * Math.max(y1 - y0, 0);
  const common = area(Math.max(a0, b0), Math.max(a1, b1), Math.min(a2, b2), Math.min(a3, b3));
  const all = area(a0, a1, a2, a3) + area(b0, b1, b2, b3) - common;
  return all > 0 ? common / all : 0;
}

/** The models to choose from; the empty value is the server's own one. */
function choices(own, others) {
  return [...(own ? [new Option('of the server', '')] : []), ...others.map((name) => new Option(name, name))];
}

export class Pane {
  constructor(settings, report) {
    this.settings = settings;
    this.segments = settings.own_segmenter || settings.segmenters.length > 0;
    this.report = report;
    const fragment = document.getElementById('pane').content.cloneNode(true);
    this.root = fragment.querySelector('.pane');
    this.form = this.root.querySelector('form');
    this.drawing = new Drawing(this.root.querySelector('canvas'));
    this.picture = null;
    this.found = null;
    this.masks = new Map();
    this.search = 0;
    this.field = (name) => this.root.querySelector(`[name="${name}"]`);
    this.#setUpSliders();
    this.#setUpDetectors();
    this.#setUpSegmenters();
    this.#setUpTools();
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.find();
    });
    this.field('prompt').addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey) {
        event.preventDefault();
        this.find();
      }
    });
    for (const name of ['config', 'params']) {
      this.field(`copy-${name}`).addEventListener('click', (event) => {
        event.preventDefault();
        this.#copy(name);
      });
    }
  }

  #setUpSliders() {
    for (const name of ['box_threshold', 'text_threshold', 'nms_iou']) {
      const slider = this.field(name);
      if (name === 'box_threshold') slider.min = this.settings.lowest_score;
      slider.value = this.settings[name];
      slider.nextElementSibling.value = Number(slider.value).toFixed(2);
      slider.addEventListener('input', () => {
        slider.nextElementSibling.value = Number(slider.value).toFixed(2);
        if (name === 'text_threshold') this.#later(() => this.find());
        else this.show();
      });
    }
    this.field('masks').addEventListener('change', () => this.show());
    if (!this.segments) {
      this.field('masks').checked = false;
      this.field('masks').disabled = true;
      this.root.querySelector('.tools').disabled = true;
    }
  }

  #setUpDetectors() {
    const { detectors, own_detector: hasOwn, box_threshold: own } = this.settings;
    const select = this.field('detector');
    select.append(...choices(hasOwn, detectors.map(({ name }) => name)));
    select.parentElement.hidden = detectors.length === 0;
    const resetThreshold = () => {
      const chosen = detectors.find(({ name }) => name === select.value);
      const slider = this.field('box_threshold');
      slider.value = chosen?.box_threshold ?? own;
      slider.nextElementSibling.value = Number(slider.value).toFixed(2);
    };
    select.addEventListener('change', () => {
      resetThreshold();
      this.find();
    });
    resetThreshold();
    if (!select.options.length) {
      const prompt = this.field('prompt');
      prompt.placeholder = 'This server has no detector (DETECTOR=none). Mark objects by hand.';
      prompt.disabled = true;
      this.form.querySelector('[type=submit]').disabled = true;
    }
  }

  #setUpSegmenters() {
    const { segmenters, own_segmenter: hasOwn } = this.settings;
    const select = this.field('segmenter');
    select.append(...choices(hasOwn, segmenters));
    select.parentElement.hidden = segmenters.length === 0;
    select.addEventListener('change', () => {
      this.masks.clear();
      const { marks } = this.drawing;
      marks.mask = null;
      this.show();
      if (marks.box || marks.points.length) this.#mark();
    });
  }

  #setUpTools() {
    const canvas = this.drawing.canvas;
    const group = `tool-${Math.random().toString(36).slice(2)}`;
    for (const radio of this.root.querySelectorAll('.tools [type=radio]')) radio.name = group;
    const tool = () => this.root.querySelector('.tools :checked').value;
    let start = null;
    canvas.addEventListener('pointerdown', (event) => {
      if (!this.picture) return;
      const point = this.drawing.pointAt(event);
      if (tool() === 'none') return this.#select(point);
      if (tool() !== 'box') return this.#addPoint(point, tool() === 'positive');
      start = point;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!start) return;
      const end = this.drawing.pointAt(event);
      this.drawing.marks.box = [Math.min(start.x, end.x), Math.min(start.y, end.y), Math.max(start.x, end.x), Math.max(start.y, end.y)];
      this.drawing.draw();
    });
    canvas.addEventListener('pointerup', () => {
      if (!start) return;
      start = null;
      if (this.drawing.marks.box) this.#mark();
    });
    canvas.addEventListener('keydown', (event) => this.#key(event));
    canvas.addEventListener('focus', () => this.drawing.draw());
    canvas.addEventListener('blur', () => this.drawing.draw());
    this.field('clear').addEventListener('click', () => this.#clearMarks());
  }

  /** Moves a cross over the picture, and sets points under it. */
  #key(event) {
    if (!this.picture) return;
    const { width, height } = this.picture.bitmap;
    this.drawing.cursor ??= { x: width / 2, y: height / 2 };
    const cursor = this.drawing.cursor;
    const step = Math.max(width, height) * (event.shiftKey ? 0.05 : 0.01);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) {
      cursor.x = Math.min(Math.max(cursor.x + moves[event.key][0], 0), width);
      cursor.y = Math.min(Math.max(cursor.y + moves[event.key][1], 0), height);
      this.drawing.draw();
    } else if (event.key === 'Enter' || event.key === 'Backspace') {
      this.#addPoint({ ...cursor }, event.key === 'Enter');
    } else if (event.key === 'Escape') {
      this.#clearMarks();
    } else {
      return;
    }
    event.preventDefault();
  }

  #addPoint(point, positive) {
    if (!this.segments) return;
    this.drawing.marks.points.push({ ...point, positive });
    this.drawing.draw();
    this.#mark();
  }

  #clearMarks() {
    this.drawing.marks = { box: null, points: [], mask: null };
    this.show();
  }

  async #mark() {
    const { marks } = this.drawing;
    if (!marks.box && !marks.points.some((point) => point.positive)) {
      return this.report('Add a point on the object first.');
    }
    const segmenter = this.field('segmenter').value;
    const answer = await this.#ask('Segmenting', () => this.picture.mark(marks.box, marks.points, segmenter));
    // the marks may have been cleared meanwhile, or another segmenter chosen
    if (!answer || marks !== this.drawing.marks || segmenter !== this.field('segmenter').value) return;
    marks.mask = answer.masks[0].mask;
    marks.score = answer.masks[0].score;
    this.#times(answer.stages);
    this.show();
  }

  /** Selects the smallest object at a point. */
  #select({ x, y }) {
    const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
    const here = this.drawing.objects.filter(({ box: [x0, y0, x1, y1] }) => x0 <= x && x <= x1 && y0 <= y && y <= y1);
    here.sort((a, b) => area(a.box) - area(b.box));
    this.drawing.selected = here[0] ?? null;
    this.#list();
    this.drawing.draw();
  }

  /** Shows another picture, and searches it if there is a prompt. */
  setPicture(picture) {
    this.picture = picture;
    this.drawing.picture = picture.bitmap;
    this.drawing.marks = { box: null, points: [], mask: null };
    this.drawing.objects = [];
    this.drawing.cursor = null;
    this.found = null;
    this.masks.clear();
    this.drawing.canvas.setAttribute('aria-label', `Picture of ${picture.bitmap.width} by ${picture.bitmap.height} pixels, not searched yet`);
    this.drawing.draw();
    if (this.field('prompt').value.trim()) this.find();
  }

  async #ask(what, request) {
    this.root.setAttribute('aria-busy', 'true');
    this.report(`${what} …`);
    try {
      const answer = await request();
      this.report.done();
      return answer;
    } catch (error) {
      this.report(error.message, true);
      return null;
    } finally {
      this.root.removeAttribute('aria-busy');
    }
  }

  /** Asks for all candidates of the prompt. */
  async find() {
    const prompt = this.field('prompt').value;
    if (!this.picture) return this.report('Choose an image first.', true);
    if (!prompt.trim()) return this.report('Type what to find first, such as: red circle. blue star.', true);
    const search = this.search += 1;
    const { picture } = this;
    const found = await this.#ask('Searching', () => picture.find(prompt, Number(this.field('text_threshold').value), this.field('detector').value));
    // another search or picture came meanwhile
    if (!found || search !== this.search || picture !== this.picture) return;
    this.found = found;
    this.searched = prompt;
    this.#times(found.stages);
    this.show();
  }

  /** The candidates that count, as the server chooses them: above the threshold, without duplicates of a phrase. */
  #counted() {
    const threshold = Number(this.field('box_threshold').value);
    const limit = Number(this.field('nms_iou').value);
    const kept = [];
    for (const candidate of this.found?.candidates ?? []) {
      if (candidate.score <= threshold) continue;
      const isDuplicate = limit < 1 && kept.some((other) => other.phrase === candidate.phrase && iou(other.box, candidate.box) > limit);
      if (!isDuplicate) kept.push(candidate);
    }
    return kept;
  }

  /** Draws and lists what counts; masks that are missing are requested when the sliders rest. */
  show() {
    const withMasks = this.field('masks').checked;
    const selected = this.drawing.selected?.candidate;
    this.drawing.objects = this.#counted().map((candidate) => ({
      candidate,
      box: candidate.box,
      score: candidate.score,
      name: candidate.phrase ?? 'object',
      phrase: candidate.phrase === null ? -1 : this.found.phrases.indexOf(candidate.phrase),
      mask: withMasks ? this.masks.get(candidate.box.join()) : undefined,
    }));
    this.drawing.selected = this.drawing.objects.find((object) => object.candidate === selected) ?? null;
    this.drawing.draw();
    this.#list();
    this.#outputs();
    if (withMasks && this.drawing.objects.some((object) => !object.mask)) this.#later(() => this.#segment());
  }

  async #segment() {
    const boxes = this.drawing.objects.filter((object) => !object.mask).map((object) => object.box);
    if (!boxes.length) return;
    const { picture } = this;
    const segmenter = this.field('segmenter').value;
    const answer = await this.#ask('Segmenting', () => picture.segment(boxes, segmenter));
    if (!answer || picture !== this.picture || segmenter !== this.field('segmenter').value) return;
    boxes.forEach((box, i) => this.masks.set(box.join(), answer.masks[i].mask));
    this.#times(answer.stages);
    this.show();
  }

  #later(work) {
    clearTimeout(this.timer);
    this.timer = setTimeout(work, REST_MS);
  }

  #list() {
    const counts = new Map();
    for (const { name } of this.drawing.objects) counts.set(name, (counts.get(name) ?? 0) + 1);
    const parts = [...counts].map(([name, count]) => `${count} ${name}`);
    const total = this.drawing.objects.length;
    let text = this.found ? `${total} ${total === 1 ? 'object' : 'objects'}${total ? `: ${parts.join(', ')}` : ''}` : 'Nothing searched yet';
    const best = this.found?.candidates[0];
    if (this.found && !total && best) text += `; the best candidate is ${best.phrase ?? 'an object'} ${best.score.toFixed(2)}`;
    if (this.drawing.marks.mask) text += `; marked object, quality ${this.drawing.marks.score.toFixed(2)}`;
    const heading = this.root.querySelector('.count');
    if (heading.textContent !== text) heading.textContent = text;
    if (this.found) this.drawing.canvas.setAttribute('aria-label', `Picture with ${text}`);
    const list = this.root.querySelector('.objects');
    list.replaceChildren(...this.drawing.objects.map((object) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.setAttribute('aria-pressed', String(object === this.drawing.selected));
      const dot = document.createElement('span');
      dot.className = 'dot';
      dot.style.background = colourOf(object.phrase);
      const score = document.createElement('span');
      score.className = 'score';
      score.textContent = object.score.toFixed(2);
      button.append(dot, object.name, score);
      button.addEventListener('click', () => {
        this.drawing.selected = this.drawing.selected === object ? null : object;
        this.drawing.draw();
        for (const other of list.querySelectorAll('button')) other.setAttribute('aria-pressed', String(other === button && this.drawing.selected === object));
      });
      const item = document.createElement('li');
      item.append(button);
      return item;
    }));
  }

  #times(stages) {
    const rows = stages.map(({ stage, computed, ms, cached }) => {
      const row = document.createElement('tr');
      const time = computed ? `${ms.toFixed(1)} ms` : 'cached';
      for (const text of [STAGES[stage] ?? stage, computed && cached ? `${time} (${cached} cached)` : time]) {
        const cell = document.createElement('td');
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    });
    this.root.querySelector('.timings tbody').replaceChildren(...rows);
  }

  #outputs() {
    if (!this.found) return;
    this.field('config').value = this.found.labeling_config;
    // with the signs of negative phrases
    const params = { prompt: this.searched.trim().replace(/[.\s]+$/, '') };
    for (const name of ['box_threshold', 'text_threshold', 'nms_iou']) {
      const value = Number(this.field(name).value);
      if (Math.abs(value - this.settings[name]) > 0.001) params[name] = value;
    }
    this.field('params').value = JSON.stringify(params);
  }

  async #copy(name) {
    const field = this.field(name);
    try {
      await navigator.clipboard.writeText(field.value);
      this.report('Copied.');
    } catch {
      // without TLS, browsers have no clipboard for pages of other machines
      field.select();
      this.report('The text is selected: copy it with the keyboard.');
    }
  }
}
