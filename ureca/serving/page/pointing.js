"use strict";

// Prompts for a new region: points inside and outside, or a box, by pointer or keyboard.

const MIN_BOX_PX = 5; // screen pixels; a shorter drag is a click
const KEY_STEP = 0.02; // fraction of the image's longer side; a fifth of it with Shift

class Pointing {
  // changed(draft): called with the draft (points, box) whenever it changes; null if it is empty.
  constructor(viewer, changed) {
    this.viewer = viewer;
    this.changed = changed;
    this.mode = "select";
    this.label = 1;
    this.points = [];
    this.box = null;
    this.corner = null; // first corner of the box
    this.cursor = null; // marker of the arrow keys
    this.marks = node("div", { class: "marks", "aria-hidden": "true" });
    this.frame = shape("rect", { class: "box", width: 0, height: 0 });
    viewer.svg.append(this.frame);
    viewer.stage.append(this.marks);
    viewer.svg.addEventListener("pointerdown", (event) => this.#down(event));
    viewer.svg.addEventListener("pointermove", (event) => this.corner && this.#frame(boxOf(this.corner, this.#place(event))));
    viewer.svg.addEventListener("pointerup", (event) => this.#up(event));
    viewer.svg.addEventListener("pointercancel", () => { this.corner = null; this.#draw(); });
  }

  get isEmpty() {
    return this.points.length === 0 && this.box === null;
  }

  // Changes the mode. Points and a box are separate prompts: a change of mode discards the draft.
  use(mode) {
    const isOther = mode !== this.mode;
    this.mode = mode;
    this.corner = this.cursor = null;
    this.viewer.panel.classList.toggle("drawing", mode !== "select");
    this.viewer.panel.classList.toggle("boxing", mode === "box");
    if (isOther && !this.isEmpty) this.clear();
    else this.#draw();
  }

  clear() {
    this.points = [];
    this.box = this.corner = this.cursor = null;
    this.#notify();
  }

  undo() {
    if (this.points.length > 0) this.points.pop();
    else this.box = null;
    this.#notify();
  }

  // Handles a key pressed on the picture; returns true if the key has a function.
  key(event) {
    if (this.mode === "select") return false;
    const { width, height } = this.viewer.image;
    const step = Math.max(width, height) * KEY_STEP * (event.shiftKey ? 0.2 : 1);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      const { x, y } = this.cursor ?? { x: width / 2, y: height / 2 };
      const [right, down] = moves[event.key];
      this.cursor = this.#clamped(x + right, y + down);
      this.#draw();
      if (this.corner) this.#frame(boxOf(this.corner, this.cursor));
      return true;
    }
    if (event.key === " ") {
      this.cursor ??= this.#clamped(width / 2, height / 2);
      if (this.mode === "point") this.#add(this.cursor, event.shiftKey);
      else if (this.corner === null) this.corner = this.cursor;
      else this.#finishBox(boxOf(this.corner, this.cursor));
      return true;
    }
    if (event.key === "Backspace" && !this.isEmpty) {
      this.undo();
      return true;
    }
    return false;
  }

  #place(event) {
    const frame = this.viewer.svg.getBoundingClientRect();
    const { width, height } = this.viewer.image;
    return this.#clamped(((event.clientX - frame.left) / frame.width) * width, ((event.clientY - frame.top) / frame.height) * height);
  }

  #clamped(x, y) {
    const { width, height } = this.viewer.image;
    const within = (value, most) => Math.round(Math.min(Math.max(value, 0), most) * 10) / 10;
    return { x: within(x, width), y: within(y, height) };
  }

  #down(event) {
    if (this.mode !== "box" || event.button !== 0) return;
    event.preventDefault();
    this.viewer.stage.focus({ preventScroll: true });
    this.viewer.svg.setPointerCapture(event.pointerId);
    this.corner = this.#place(event);
    this.pressed = [event.clientX, event.clientY];
  }

  #up(event) {
    if (event.button !== 0) return;
    if (this.mode === "point") this.#add(this.#place(event), event.shiftKey);
    if (this.mode !== "box" || this.corner === null) return;
    const box = boxOf(this.corner, this.#place(event));
    this.corner = null;
    const isBox = gap(this.pressed, [event.clientX, event.clientY]) >= MIN_BOX_PX && box[2] > 0 && box[3] > 0;
    if (isBox) this.#finishBox(box);
    else this.#draw();
  }

  #add(place, isOther) {
    this.points.push({ ...place, label: isOther ? 1 - this.label : this.label });
    this.#notify();
  }

  #finishBox(box) {
    this.corner = null;
    if (box[2] > 0 && box[3] > 0) this.box = box;
    this.#notify();
  }

  #notify() {
    this.#draw();
    this.changed(this.isEmpty ? null : { points: [...this.points], box: this.box });
  }

  #draw() {
    this.#frame(this.box ?? [0, 0, 0, 0]);
    const marks = this.points.map((point) => [point, point.label ? "inside" : "outside", point.label ? "+" : "−"]);
    if (this.cursor) marks.push([this.cursor, "cursor", ""]);
    const { width, height } = this.viewer.image;
    this.marks.replaceChildren(...marks.map(([{ x, y }, kind, sign]) => {
      const mark = node("span", { class: kind }, sign);
      mark.style.setProperty("left", `${(100 * x) / width}%`);
      mark.style.setProperty("top", `${(100 * y) / height}%`);
      return mark;
    }));
  }

  #frame([x, y, width, height]) {
    for (const [name, value] of Object.entries({ x, y, width, height })) this.frame.setAttribute(name, value);
  }
}

function boxOf(a, b) {
  const round = (value) => Math.round(value * 10) / 10;
  return [Math.min(a.x, b.x), Math.min(a.y, b.y), round(Math.abs(a.x - b.x)), round(Math.abs(a.y - b.y))];
}
