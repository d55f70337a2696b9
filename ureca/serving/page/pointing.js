"use strict";

// The draft of a new region, by pointer or keyboard: points inside and outside, a box, a polygon, or a painted mask.
// Every change can be undone.

const MIN_BOX_PX = 5; // screen pixels; a shorter drag is a click
const CLOSING_PX = 12; // screen pixels around the first corner that close the polygon
const KEY_STEP = 0.02; // fraction of the image's longer side; a fifth of it with Shift
const MIN_CORNERS = 3;
const PAINTING = ["brush", "eraser"];

const EMPTY_DRAFT = Object.freeze({ points: [], box: null, corners: [], isClosed: false, mask: null });

class Pointing {
  // changed(draft): called with the draft whenever it changes; null if it is empty.
  constructor(viewer, changed) {
    this.viewer = viewer;
    this.changed = changed;
    this.mode = "select";
    this.label = 1; // of the next point
    this.diameter = 0.05; // of the brush, as a fraction of the image's longer side
    this.history = [EMPTY_DRAFT];
    this.at = 0;
    this.corner = null; // first corner of the box
    this.last = null; // latest place of the brush
    this.cursor = null; // marker of the arrow keys
    this.marks = node("div", { class: "marks", "aria-hidden": "true" });
    this.frame = shape("rect", { class: "box", width: 0, height: 0 });
    this.line = shape("polyline", { class: "box" });
    this.preview = shape("path", { class: "preview" });
    this.tip = shape("ellipse", { class: "tip", rx: 0, ry: 0 });
    this.brush = new Brush(viewer.image);
    viewer.svg.before(this.brush.canvas);
    viewer.svg.append(this.preview, this.frame, this.line, this.tip);
    viewer.plane.append(this.marks);
    viewer.svg.addEventListener("pointerdown", (event) => this.#down(event));
    viewer.svg.addEventListener("pointermove", (event) => this.#move(event));
    viewer.svg.addEventListener("pointerup", (event) => this.#up(event));
    viewer.svg.addEventListener("pointercancel", () => this.interrupt());
    viewer.svg.addEventListener("pointerleave", () => {
      this.#tip(null);
      this.#previewAt(null);
    });
  }

  get draft() {
    return this.history[this.at];
  }

  get isEmpty() {
    return this.draft === EMPTY_DRAFT;
  }

  get isPainting() {
    return PAINTING.includes(this.mode);
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.history.length - 1;
  }

  // Changes the mode. Points, box and polygon are separate prompts: a change between them discards the draft. Brush and
  // eraser begin with the mask of the draft, the eraser also with that of the selected region.
  use(mode) {
    const isOther = mode !== this.mode;
    const wasPainting = this.isPainting;
    this.mode = mode;
    this.corner = this.cursor = this.last = null;
    this.viewer.panel.classList.toggle("drawing", mode !== "select");
    this.viewer.panel.classList.toggle("dragging", mode === "box" || this.isPainting);
    this.#tip(null);
    if (this.isPainting && !wasPainting) {
      const base = this.viewer.draft?.region ?? (mode === "eraser" ? this.viewer.byId.get(this.viewer.selected) : null);
      this.begin(base?.response.rle ?? null);
    } else if (isOther && !(this.isPainting && wasPainting) && !this.isEmpty) this.clear();
    else this.#draw();
  }

  // Starts a new history with a painted mask; null: with nothing.
  begin(mask) {
    const hadDraft = !this.isEmpty;
    this.history = [mask === null ? EMPTY_DRAFT : { ...EMPTY_DRAFT, mask }];
    this.at = 0;
    if (hadDraft || mask !== null) this.#notify();
    else this.#draw();
  }

  clear() {
    this.history = [EMPTY_DRAFT];
    this.at = 0;
    this.corner = this.cursor = null;
    this.#notify();
  }

  undo() {
    if (!this.canUndo) return;
    this.at--;
    this.#notify();
  }

  redo() {
    if (!this.canRedo) return;
    this.at++;
    this.#notify();
  }

  // Drops an unfinished drag.
  interrupt() {
    this.corner = null;
    if (this.last !== null) this.brush.show(this.draft.mask);
    this.last = null;
    this.#draw();
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
      if (this.isPainting) this.#tip(this.cursor);
    } else if (event.key === " ") {
      this.cursor ??= this.#clamped(width / 2, height / 2);
      if (this.mode === "point") this.#addPoint(this.cursor, event.shiftKey);
      else if (this.mode === "polygon") this.#addCorner(this.cursor);
      else if (this.isPainting) this.#paint(this.cursor, this.cursor, true);
      else if (this.corner === null) this.corner = this.cursor;
      else this.#finishBox(boxOf(this.corner, this.cursor));
    } else if (event.key === "Enter" && this.mode === "polygon" && !this.draft.isClosed && this.draft.corners.length >= MIN_CORNERS) {
      this.#close();
    } else if (event.key === "Backspace" && this.canUndo) {
      this.undo();
    } else return false;
    return true;
  }

  get #diameter() {
    return Math.max(this.viewer.image.width, this.viewer.image.height) * this.diameter;
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
    if (event.button !== 0 || !(this.mode === "box" || this.isPainting)) return;
    event.preventDefault();
    this.viewer.stage.focus({ preventScroll: true });
    this.viewer.svg.setPointerCapture(event.pointerId);
    if (this.isPainting) this.#paint(this.#place(event), this.#place(event), false);
    else this.corner = this.#place(event);
    this.pressed = [event.clientX, event.clientY];
  }

  #move(event) {
    const place = this.#place(event);
    if (this.corner) this.#frame(boxOf(this.corner, place));
    if (this.last) for (const step of event.getCoalescedEvents?.() ?? []) this.#paint(this.last, this.#place(step), false);
    if (this.last) this.#paint(this.last, place, false);
    if (this.isPainting) this.#tip(place);
    if (event.pointerType !== "touch") this.#previewAt(place);
    if (this.mode === "polygon" && !this.draft.isClosed) this.#lineTo(place);
  }

  #up(event) {
    if (event.button !== 0) return;
    const place = this.#place(event);
    if (this.mode === "point") this.#addPoint(place, event.shiftKey);
    if (this.mode === "polygon") this.#addCorner(place);
    if (this.last !== null) this.#paint(this.last, place, true);
    if (this.mode !== "box" || this.corner === null) return;
    const box = boxOf(this.corner, place);
    this.corner = null;
    const isBox = gap(this.pressed, [event.clientX, event.clientY]) >= MIN_BOX_PX && box[2] > 0 && box[3] > 0;
    if (isBox) this.#finishBox(box);
    else this.#draw();
  }

  #addPoint(place, isOther) {
    this.#change({ points: [...this.draft.points, { ...place, label: isOther ? 1 - this.label : this.label }] });
  }

  // Adds a corner of the polygon; one at the first corner, or twice at the same place, closes it.
  #addCorner(place) {
    const corners = this.draft.isClosed ? [] : this.draft.corners;
    const pixels = this.viewer.image.width / this.viewer.svg.getBoundingClientRect().width;
    const isAt = (corner, distance) => corner !== undefined && gap([corner.x, corner.y], [place.x, place.y]) <= distance * pixels;
    const isDone = isAt(corners[0], CLOSING_PX) || isAt(corners.at(-1), 1);
    if (isDone && corners.length >= MIN_CORNERS) this.#close();
    else if (!isAt(corners.at(-1), 1)) this.#change({ ...EMPTY_DRAFT, corners: [...corners, place] });
  }

  #close() {
    this.#change({ isClosed: true });
  }

  #finishBox(box) {
    this.corner = null;
    if (box[2] > 0 && box[3] > 0) this.#change({ box });
    else this.#draw();
  }

  // Paints or erases; isLast: true at the end of a stroke, which is then one step of the history.
  #paint(from, to, isLast) {
    this.brush.stroke(from, to, this.#diameter, this.mode === "eraser");
    this.last = isLast ? null : to;
    if (!isLast) return;
    const mask = this.brush.mask();
    if (mask !== null || this.draft.mask !== null) this.#change({ mask });
  }

  #change(part) {
    const next = { ...this.draft, ...part };
    const isEmpty = next.points.length === 0 && next.box === null && next.corners.length === 0 && next.mask === null;
    this.history = [...this.history.slice(0, this.at + 1), isEmpty ? EMPTY_DRAFT : next];
    this.at++;
    this.#notify();
  }

  #notify() {
    this.#draw();
    this.changed(this.isEmpty ? null : this.draft);
  }

  // Outlines the region that a first point at a place selects: the smallest of the known ones around it.
  #previewAt(place) {
    const { regions, paths } = this.viewer;
    const isAround = ({ id }) => paths.get(id).isPointInFill(new DOMPoint(place.x, place.y));
    const around = place !== null && this.mode === "point" && this.label === 1 && this.isEmpty ? regions.filter(isAround) : [];
    const smallest = around.toSorted((a, b) => a.area_px - b.area_px)[0];
    this.preview.setAttribute("d", smallest?.outline ?? "");
  }

  #draw() {
    this.#previewAt(null);
    const { points, box, corners, mask } = this.draft;
    this.brush.show(mask);
    this.#frame(box ?? [0, 0, 0, 0]);
    this.#lineTo(null);
    const marks = points.map((point) => [point, point.label ? "inside" : "outside", point.label ? "+" : "−"]);
    marks.push(...corners.map((corner) => [corner, "corner", ""]));
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

  // Draws the polygon so far, to the place of the pointer or, if closed, back to its first corner.
  #lineTo(place) {
    const { corners, isClosed } = this.draft;
    const all = [...corners, ...(isClosed ? corners.slice(0, 1) : corners.length > 0 && place ? [place] : [])];
    this.line.setAttribute("points", all.map(({ x, y }) => `${x},${y}`).join(" "));
  }

  #tip(place) {
    const radius = place === null ? 0 : this.#diameter / 2;
    for (const [name, value] of Object.entries({ cx: place?.x ?? 0, cy: place?.y ?? 0, rx: radius, ry: radius })) this.tip.setAttribute(name, value);
  }
}

function boxOf(a, b) {
  const round = (value) => Math.round(value * 10) / 10;
  return [Math.min(a.x, b.x), Math.min(a.y, b.y), round(Math.abs(a.x - b.x)), round(Math.abs(a.y - b.y))];
}

// Returns a draft as a region of a request; null while it specifies none.
function promptOf({ points, box, corners, isClosed, mask }) {
  if (mask !== null) return { rle: mask };
  if (isClosed) return { polygon: [corners.flatMap(({ x, y }) => [x, y])] };
  if (box === null && !points.some((point) => point.label === 1)) return null;
  return { ...(box ? { bbox_xywh: box } : {}), ...(points.length > 0 ? { points } : {}) };
}
