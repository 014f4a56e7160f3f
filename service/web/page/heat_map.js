// The n x n map of slots: first sub-key down, second across, a slot's reads as its colour on a logarithmic scale.
// Wheel, two fingers, double click and + - 0 zoom; dragging and arrow keys move; the slot under the pointer or in the middle of
// the cross is told. The picture is painted once for each new map and drawn scaled after that, so that moving is smooth.

import { NEVER, PALETTE } from "./colours.js";
import { element, onLight, say, sharpContext } from "./elements.js";
import { number } from "./figures.js";

const SLOT_PIXELS_MAX = 48; // of the screen; of a map that has few slots, more

export class HeatMap {
  constructor(unit) {
    this.unit = unit;
    this.picture = document.createElement("canvas");
    this.view = { x: 0, y: 0, scale: 1 }; // left upper corner in slots; pixels of the screen a slot
    this.pointers = new Map();
    this.slot = null;
    this.canvas = element("canvas", {
      tabindex: "0", role: "application", "aria-label": "Map of slot accesses", "aria-describedby": "map-keys map-slot",
      onkeydown: (event) => this.key(event), ondblclick: (event) => this.zoom(2, event.offsetX, event.offsetY),
      onpointerdown: (event) => this.down(event), onpointermove: (event) => this.move(event),
      onpointerup: (event) => this.up(event), onpointercancel: (event) => this.up(event),
      onpointerleave: () => this.pointers.size || this.pick(null), onfocus: () => this.pickMiddle(), onblur: () => this.pick(null),
    });
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.told = element("p", { id: "map-slot", class: "readout", "aria-live": "polite" });
    this.legend = element("canvas", { class: "legend", role: "img", "aria-label": "Scale of the map" });
    const button = (name, label, act) => element("button", { type: "button", class: "plain", "aria-label": label, onclick: act }, name);
    this.element = element(
      "div",
      { class: "map" },
      this.canvas,
      element(
        "div",
        { class: "map-foot" },
        this.legend,
        element("div", { class: "map-buttons" }, button("−", "Zoom out", () => this.zoom(1 / 2)), button("+", "Zoom in", () => this.zoom(2)), button("Whole", "Show the whole map", () => this.whole())),
      ),
      this.told,
      element("p", { id: "map-keys", class: "quiet" }, "Zoom with the wheel, two fingers, or + and −; move by dragging or with the arrow keys; 0 shows the whole."),
    );
    this.observer = new ResizeObserver(() => this.resized());
    this.observer.observe(this.canvas);
    this.unlight = onLight(() => this.side && this.drawLegend());
  }

  // counts float32 [side, side] of `subKeys` squared slots
  show(counts, side, subKeys) {
    const fresh = side !== this.side;
    Object.assign(this, { counts, side, subKeys });
    this.total = counts.reduce((sum, count) => sum + count, 0);
    this.most = counts.reduce((most, count) => Math.max(most, count), 0);
    this.least = counts.reduce((least, count) => (count > 0 && count < least ? count : least), Infinity);
    if (!Number.isFinite(this.least)) [this.least, this.most] = [1, 1];
    this.least = Math.max(this.least, this.most * 1e-6);
    this.paint();
    if (fresh) this.whole();
    else this.draw();
    this.drawLegend();
    this.tell();
  }

  paint() {
    const { side, counts } = this;
    Object.assign(this.picture, { width: side, height: side });
    const pixels = new ImageData(side, side);
    const [low, spread] = [Math.log(this.least), Math.log(this.most / this.least) || 1];
    for (let slot = 0; slot < counts.length; slot++) {
      const shade = counts[slot] > 0 ? Math.max(0, Math.min(255, Math.round((255 * (Math.log(counts[slot]) - low)) / spread))) : -1;
      for (let channel = 0; channel < 3; channel++) {
        pixels.data[slot * 4 + channel] = shade < 0 ? NEVER[channel] : PALETTE[shade * 3 + channel];
      }
      pixels.data[slot * 4 + 3] = 255;
    }
    this.picture.getContext("2d").putImageData(pixels, 0, 0);
  }

  draw() {
    if (this.waits) return;
    this.waits = requestAnimationFrame(() => {
      this.waits = 0;
      if (this.side) this.drawNow();
    });
  }

  drawNow() {
    const { context, width, height } = sharpContext(this.canvas);
    const { x, y, scale } = this.view;
    context.imageSmoothingEnabled = scale * (window.devicePixelRatio || 1) < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, -x * scale, -y * scale, this.side * scale, this.side * scale);
    if (scale >= 14) this.drawGrid(context, width, height);
    if (!this.slot) return;
    const [first, second] = this.slot;
    const [left, top] = [(second - x) * scale, (first - y) * scale];
    const size = Math.max(scale, 5);
    for (const [tone, thick] of [["#0d0e16", 4], ["#ffffff", 2]]) {
      context.strokeStyle = tone;
      context.lineWidth = thick;
      context.strokeRect(left + (scale - size) / 2, top + (scale - size) / 2, size, size);
    }
  }

  drawGrid(context, width, height) {
    const { x, y, scale } = this.view;
    context.strokeStyle = "rgba(13, 14, 22, 0.55)";
    context.lineWidth = 1;
    context.beginPath();
    for (let at = Math.ceil(x); (at - x) * scale < width; at++) {
      context.moveTo((at - x) * scale, 0);
      context.lineTo((at - x) * scale, height);
    }
    for (let at = Math.ceil(y); (at - y) * scale < height; at++) {
      context.moveTo(0, (at - y) * scale);
      context.lineTo(width, (at - y) * scale);
    }
    context.stroke();
  }

  drawLegend() {
    const { context, width } = sharpContext(this.legend);
    const bar = { left: 40, top: 2, width: width - 48, height: 10 };
    const style = getComputedStyle(this.legend);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = `rgb(${NEVER})`;
    context.fillRect(4, bar.top, 22, bar.height);
    for (let at = 0; at < bar.width; at++) {
      const shade = Math.round((255 * at) / bar.width);
      context.fillStyle = `rgb(${PALETTE.slice(shade * 3, shade * 3 + 3)})`;
      context.fillRect(bar.left + at, bar.top, 1, bar.height);
    }
    context.fillStyle = style.color;
    context.textBaseline = "top";
    context.textAlign = "left";
    context.fillText("never", 0, 16);
    const spread = Math.log(this.most / this.least);
    context.fillText(number(this.least), bar.left, 16);
    context.textAlign = "right";
    context.fillText(`${number(this.most)} ${this.unit}`, bar.left + bar.width, 16);
    context.textAlign = "center";
    if (spread > 0 && width > 260) context.fillText(number(Math.exp(spread / 2) * this.least, 2), bar.left + bar.width / 2, 16);
  }

  // ---- where it is looked at --------------------------------------------------------------------------------------

  fitting() {
    return Math.min(this.canvas.clientWidth, this.canvas.clientHeight) / this.side;
  }

  whole() {
    this.view = { x: 0, y: 0, scale: this.fitting() };
    this.keepInside();
  }

  resized() {
    if (!this.side) return;
    this.view.scale = Math.max(this.view.scale, this.fitting());
    this.keepInside();
    this.drawLegend();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const before = this.view.scale;
    const scale = Math.max(this.fitting(), Math.min(Math.max(SLOT_PIXELS_MAX, 8 * this.fitting()), before * factor));
    this.view = { x: this.view.x + x / before - x / scale, y: this.view.y + y / before - y / scale, scale };
    this.keepInside();
  }

  pan(across, down) {
    this.view = { ...this.view, x: this.view.x + across / this.view.scale, y: this.view.y + down / this.view.scale };
    this.keepInside();
  }

  keepInside() {
    const { scale } = this.view;
    const room = (size) => Math.max(0, this.side - size / scale);
    this.view.x = Math.max(0, Math.min(room(this.canvas.clientWidth), this.view.x));
    this.view.y = Math.max(0, Math.min(room(this.canvas.clientHeight), this.view.y));
    this.canvas.dataset.zoom = (scale / this.fitting()).toFixed(2);
    if (document.activeElement === this.canvas && !this.pointers.size && !this.hovered) this.pickMiddle();
    this.draw();
  }

  // ---- pointer and keys -------------------------------------------------------------------------------------------

  wheel(event) {
    if (!this.side) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0022)), event.offsetX, event.offsetY);
    this.hover(event);
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    this.hover(event);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.side) return this.hover(event);
    const spread = this.spread();
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    const share = 1 / this.pointers.size;
    this.pan((before.x - event.offsetX) * share, (before.y - event.offsetY) * share);
    if (this.pointers.size === 2 && spread.distance > 0) this.zoom(this.spread().distance / spread.distance, spread.x, spread.y);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
  }

  spread() {
    const [one, other = one] = this.pointers.values();
    return { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2, distance: Math.hypot(one.x - other.x, one.y - other.y) };
  }

  hover(event) {
    if (!this.side) return;
    this.hovered = true;
    this.pick(this.at(event.offsetX, event.offsetY));
  }

  at(x, y) {
    const inside = (value) => Math.max(0, Math.min(this.side - 1, Math.floor(value)));
    return [inside(this.view.y + y / this.view.scale), inside(this.view.x + x / this.view.scale)];
  }

  key(event) {
    if (!this.side || event.ctrlKey || event.metaKey || event.altKey) return;
    const stride = event.shiftKey ? 10 : 1;
    const [first, second] = this.slot ?? this.at(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2);
    const towards = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const centre = () => [(second + 0.5 - this.view.x) * this.view.scale, (first + 0.5 - this.view.y) * this.view.scale];
    this.hovered = Boolean(towards) || event.key === "+" || event.key === "=" || event.key === "-";
    if (towards) this.step(first + towards[0] * stride, second + towards[1] * stride);
    else if (event.key === "+" || event.key === "=") this.zoom(1.5, ...centre());
    else if (event.key === "-") this.zoom(1 / 1.5, ...centre());
    else if (event.key === "0") this.whole();
    else return;
    event.preventDefault();
  }

  // Choose a slot, and bring it into sight.
  step(first, second) {
    const inside = (value) => Math.max(0, Math.min(this.side - 1, value));
    this.pick([inside(first), inside(second)]);
    const shift = (at, from, size) => Math.min(0, (at - from) * this.view.scale) || Math.max(0, (at + 1 - from) * this.view.scale - size);
    this.pan(shift(this.slot[1], this.view.x, this.canvas.clientWidth), shift(this.slot[0], this.view.y, this.canvas.clientHeight));
  }

  pickMiddle() {
    if (this.side && !this.slot) this.pick(this.at(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2));
  }

  pick(slot) {
    if (!slot) this.hovered = false;
    this.slot = slot;
    this.draw();
    this.tell();
  }

  tell() {
    if (!this.side) return;
    const wide = this.subKeys / this.side;
    const name = (at) => (wide === 1 ? `${at}` : `${Math.ceil(at * wide)}–${Math.ceil((at + 1) * wide) - 1}`);
    if (!this.slot) {
      const used = this.counts.reduce((sum, count) => sum + (count > 0), 0);
      const what = wide === 1 ? "slots" : "squares of slots";
      return say(this.told, `${number((100 * used) / this.counts.length)} % of ${this.counts.length.toLocaleString("en")} ${what} were read`);
    }
    const [first, second] = this.slot;
    const count = this.counts[first * this.side + second];
    const part = this.total ? (100 * count) / this.total : 0;
    say(this.told, `slot (${name(first)}, ${name(second)})  ·  ${number(count)} ${count === 1 && this.unit === "reads" ? "read" : this.unit}  ·  ${number(part)} % of all`);
  }

  stop() {
    this.observer.disconnect();
    this.unlight();
    cancelAnimationFrame(this.waits);
  }
}
