// One figure of a job by step: a line that grows, events as marks, and a cursor by pointer or arrow keys that reads it.
// Where a pixel holds many steps, their smallest and largest values are drawn, so that no spike is lost.

import { colour, element, onLight, say, sharpContext } from "./elements.js";
import { number } from "./figures.js";

const MARGIN = { left: 52, right: 12, top: 10, bottom: 24 };
const MARKS = { restart: "bad", silent: "bad", steps_skipped: "warn", cut_failed: "warn", reshard: "accent", cut: "soft" };

export class Curve {
  // `lines`: [{ name, of: record -> number | undefined, dots }]
  constructor(title, unit, lines, { logarithmic = false } = {}) {
    Object.assign(this, { title, unit, lines, logarithmic, marks: [], cursor: null });
    this.height = logarithmic ? Math.log10 : (value) => value;
    this.series = lines.map(() => ({ steps: [], values: [] }));
    this.readout = element("p", { class: "readout", "aria-live": "polite" });
    this.canvas = element("canvas", {
      tabindex: "0", role: "img", "aria-label": `${title}, by step. Arrow keys read values.`,
      onpointermove: (event) => this.point(event.offsetX), onpointerleave: () => this.read(null),
      onkeydown: (event) => this.key(event), onblur: () => this.read(null),
    });
    const keys = lines.length > 1 ? lines.map((line, at) => element("span", { class: `key key-${at}` }, line.name)) : [];
    this.element = element("figure", { class: "curve" }, element("figcaption", {}, element("h3", {}, title), ...keys, this.readout), this.canvas);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
    this.unlight = onLight(() => this.draw());
  }

  add(records) {
    for (const record of records) {
      this.lines.forEach((line, at) => {
        const value = line.of(record);
        if (value == null || !Number.isFinite(Number(value))) return;
        this.series[at].steps.push(record.step);
        this.series[at].values.push(Number(value));
      });
    }
    this.element.hidden = this.series.every((line) => line.steps.length === 0);
    this.draw();
    if (this.cursor == null) this.tellLast();
  }

  mark(marks) {
    this.marks = marks;
    this.draw();
  }

  range() {
    let [first, last, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { steps, values } of this.series) {
      if (!steps.length) continue;
      first = Math.min(first, steps[0]);
      last = Math.max(last, steps.at(-1));
      for (const value of values) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    [low, high] = [this.height(low), this.height(high)];
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    return { first, last: Math.max(last, first + 1), low: low - pad, high: high + pad };
  }

  draw() {
    const { context, width, height } = sharpContext(this.canvas);
    if (width < 80 || this.series.every((line) => !line.steps.length)) return;
    const range = this.range();
    this.across = (step) => MARGIN.left + ((step - range.first) / (range.last - range.first)) * (width - MARGIN.left - MARGIN.right);
    this.down = (value) => MARGIN.top + ((range.high - this.height(value)) / (range.high - range.low)) * (height - MARGIN.top - MARGIN.bottom);
    this.drawGrid(context, range, width, height);
    this.drawMarks(context, range, height);
    this.series.forEach((line, at) => this.drawLine(context, line, at));
    if (this.cursor != null) this.drawCursor(context, height);
  }

  drawGrid(context, range, width, height) {
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = colour("quiet");
    context.strokeStyle = colour("grid");
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    const values = this.logarithmic ? logarithmicTicks(range.low, range.high) : ticks(range.low, range.high, height / 42);
    for (const value of values) {
      const y = Math.round(this.down(value)) + 0.5;
      context.beginPath();
      context.moveTo(MARGIN.left, y);
      context.lineTo(width - MARGIN.right, y);
      context.stroke();
      context.fillText(number(value), MARGIN.left - 8, y);
    }
    context.textBaseline = "alphabetic";
    for (const step of ticks(range.first, range.last, width / 90)) {
      if (!Number.isInteger(step)) continue;
      context.textAlign = this.across(step) > width - 30 ? "right" : "center";
      context.fillText(step.toLocaleString("en"), this.across(step), height - 6);
    }
  }

  drawMarks(context, range, height) {
    for (const mark of this.marks) {
      if (mark.step < range.first || mark.step > range.last) continue;
      const x = Math.round(this.across(mark.step)) + 0.5;
      const tone = colour(MARKS[mark.kind] ?? "quiet");
      context.strokeStyle = context.fillStyle = tone;
      context.setLineDash(mark.kind === "cut" ? [2, 4] : []);
      context.beginPath();
      context.moveTo(x, mark.kind === "cut" ? height - MARGIN.bottom - 12 : MARGIN.top);
      context.lineTo(x, height - MARGIN.bottom);
      context.stroke();
      context.setLineDash([]);
      if (mark.kind === "cut") continue;
      context.beginPath();
      context.moveTo(x - 4, MARGIN.top - 4);
      context.lineTo(x + 4, MARGIN.top - 4);
      context.lineTo(x, MARGIN.top + 3);
      context.fill();
    }
  }

  drawLine(context, { steps, values }, at) {
    const line = this.lines[at];
    context.strokeStyle = context.fillStyle = colour(`line-${at}`);
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    context.beginPath();
    let [pixel, low, high] = [null, 0, 0];
    for (let index = 0; index < steps.length; index++) {
      const x = this.across(steps[index]);
      const y = this.down(values[index]);
      if (pixel !== null && Math.round(x) === pixel) {
        if (y < low || y > high) context.lineTo(x, y);
        [low, high] = [Math.min(low, y), Math.max(high, y)];
      } else {
        [pixel, low, high] = [Math.round(x), y, y];
        if (index) context.lineTo(x, y);
        else context.moveTo(x, y);
      }
    }
    context.stroke();
    if (!line.dots && steps.length > 1) return;
    for (let index = 0; index < steps.length; index++) {
      context.beginPath();
      context.arc(this.across(steps[index]), this.down(values[index]), 3, 0, 2 * Math.PI);
      context.fill();
    }
  }

  drawCursor(context, height) {
    const x = Math.round(this.across(this.cursor)) + 0.5;
    context.strokeStyle = colour("quiet");
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, MARGIN.top);
    context.lineTo(x, height - MARGIN.bottom);
    context.stroke();
    this.series.forEach((line, at) => {
      const index = nearest(line.steps, this.cursor);
      if (index < 0) return;
      context.fillStyle = colour(`line-${at}`);
      context.beginPath();
      context.arc(this.across(line.steps[index]), this.down(line.values[index]), 4, 0, 2 * Math.PI);
      context.fill();
    });
  }

  point(x) {
    const { steps } = this.longest();
    if (!steps.length) return;
    const range = this.range();
    const width = this.canvas.clientWidth - MARGIN.left - MARGIN.right;
    this.read(steps[nearest(steps, range.first + ((x - MARGIN.left) / width) * (range.last - range.first))]);
  }

  key(event) {
    const { steps } = this.longest();
    const stride = event.shiftKey ? Math.max(1, Math.round(steps.length / 20)) : 1;
    const at = nearest(steps, this.cursor ?? Infinity);
    const to = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined || !steps.length) return;
    event.preventDefault();
    this.read(steps[Math.max(0, Math.min(steps.length - 1, to))]);
  }

  longest() {
    return this.series.reduce((one, other) => (other.steps.length > one.steps.length ? other : one));
  }

  read(step) {
    if (step === this.cursor) return;
    this.cursor = step;
    this.draw();
    if (step == null) return this.tellLast();
    const happened = this.marks.filter((mark) => mark.step === step).map((mark) => mark.message);
    say(this.readout, [`step ${step.toLocaleString("en")}`, this.tell(step), ...happened].join("  ·  "));
  }

  tellLast() {
    say(this.readout, this.tell(Infinity));
  }

  tell(step) {
    const told = this.series.map((line, at) => {
      const index = nearest(line.steps, step);
      const name = this.lines.length > 1 ? `${this.lines[at].name} ` : "";
      return index < 0 ? null : `${name}${number(line.values[index], 4)}${this.unit}`;
    });
    return told.filter(Boolean).join("  ·  ");
  }

  stop() {
    this.observer.disconnect();
    this.unlight();
  }
}

// The place of the value in a rising list that is nearest to one; -1 in an empty list.
export function nearest(list, value) {
  let [low, high] = [0, list.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - list[low - 1] < list[low] - value ? low - 1 : list.length ? low : -1;
}

// Round numbers between two, about `count`.
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(2, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}

// 1, 2, 5 and their tenfolds between 10 ** low and 10 ** high; the tenfolds of 1 alone where those are many.
function logarithmicTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const digit of high - low < 3 ? [1, 2, 5] : [1]) {
      const value = Number((digit * 10 ** power).toPrecision(12));
      if (Math.log10(value) >= low && Math.log10(value) <= high) found.push(value);
    }
  }
  return found;
}
