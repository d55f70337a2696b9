"use strict";

// Magnification of the picture by wheel, pinch, drag, buttons and keys. The stage keeps its place and size on the page;
// the plane with the pixels and the outlines grows and moves inside it.

const MAX_ZOOM = 16;
const WHEEL_RATE = 0.0015; // natural logarithm of the factor, per pixel of the wheel
const PIXELS_PER_LINE = 30; // of a wheel that counts lines
const KEY_FACTOR = 1.5;
const PAN_STEP = 0.1; // of the stage
const MIN_DRAG_PX = 4; // a shorter movement is a click

class Zoom {
  // canDrag(): true if the primary button moves the picture; interrupt(): called when a second finger touches it.
  constructor(viewer, canDrag, interrupt) {
    this.viewer = viewer;
    this.stage = viewer.stage;
    this.canDrag = canDrag;
    this.interrupt = interrupt;
    this.factor = 1;
    [this.left, this.top] = [0, 0]; // of the plane, in sizes of the stage
    this.fingers = new Map(); // places on the screen by pointer id
    this.drag = null; // place of the pointer, once it has moved the picture
    this.isPinching = false; // true until all fingers are lifted
    this.swallowsClick = false;
    this.label = node("span", { class: "factor", "aria-hidden": "true" });
    this.buttons = node("div", { class: "zoom", role: "group", "aria-label": "Zoom" },
      this.#button("Zoom out", "−", () => this.by(1 / KEY_FACTOR)),
      this.#button("Zoom in", "+", () => this.by(KEY_FACTOR)),
      this.#button("Show the whole image", "Fit", () => this.fit()),
      this.label);
    viewer.stage.after(this.buttons);
    this.stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    // In the capture phase: a pinch or a drag is no prompt for a region.
    for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel", "click"]) {
      this.stage.addEventListener(type, (event) => this.#pointer(event), true);
    }
    for (const type of ["touchstart", "touchmove"]) {
      this.stage.addEventListener(type, (event) => event.touches.length > 1 && event.preventDefault(), { passive: false });
    }
    this.#draw();
  }

  fit() {
    this.factor = 1;
    this.#move(0, 0);
  }

  // Zooms by a factor around a place of the stage, in its sizes.
  by(factor, [x, y] = [0.5, 0.5]) {
    const next = Math.min(Math.max(this.factor * factor, 1), MAX_ZOOM);
    const ratio = next / this.factor;
    this.factor = next;
    this.#move(x - (x - this.left) * ratio, y - (y - this.top) * ratio);
  }

  // Moves the picture as little as possible to show a box (x, y, width, height in pixels of the image).
  reveal([x, y, width, height]) {
    const { width: imageWidth, height: imageHeight } = this.viewer.image;
    const inside = (start, length, whole, offset) => {
      const [first, last] = [(start / whole) * this.factor + offset, ((start + length) / whole) * this.factor + offset];
      if (first < 1 && last > 0) return offset;
      return offset + 0.5 - (first + last) / 2;
    };
    this.#move(inside(x, width, imageWidth, this.left), inside(y, height, imageHeight, this.top));
  }

  // Handles a key pressed on the picture; returns true if the key has a function.
  key(event) {
    const pans = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key === "+" || event.key === "=") this.by(KEY_FACTOR);
    else if (event.key === "-") this.by(1 / KEY_FACTOR);
    else if (event.key === "0") this.fit();
    else if (event.shiftKey && event.key in pans && this.canDrag() && this.factor > 1) {
      const [right, down] = pans[event.key];
      this.#move(this.left + right * PAN_STEP, this.top + down * PAN_STEP);
    } else return false;
    return true;
  }

  #button(name, text, act) {
    const button = node("button", { type: "button", "aria-label": name, title: name }, text);
    button.addEventListener("click", act);
    return button;
  }

  #wheel(event) {
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? PIXELS_PER_LINE : 1;
    // Without magnification the wheel's way out scrolls the page.
    if (event.deltaY > 0 && this.factor === 1 && !event.ctrlKey) return;
    event.preventDefault();
    this.by(Math.exp(-event.deltaY * lines * WHEEL_RATE * (event.ctrlKey ? 4 : 1)), this.#place([event.clientX, event.clientY]));
  }

  #pointer(event) {
    const place = [event.clientX, event.clientY];
    const isTouch = event.pointerType === "touch";
    let isOurs = this.isPinching;
    if (event.type === "click") {
      isOurs = this.swallowsClick;
      this.swallowsClick = false;
    } else if (event.type === "pointerdown") {
      if (isTouch) this.fingers.set(event.pointerId, place);
      if (this.fingers.size === 2) {
        this.isPinching = isOurs = true;
        this.interrupt();
      } else {
        this.swallowsClick = false;
        const moves = event.button === 1 || (event.button === 0 && this.canDrag());
        this.drag = moves && this.factor > 1 ? { id: event.pointerId, place, hasMoved: false } : null;
        isOurs = event.button === 1;
        if (isOurs) event.preventDefault();
      }
    } else if (event.type === "pointermove") {
      if (this.isPinching) this.#pinch(event.pointerId, place);
      else if (this.drag?.id === event.pointerId) isOurs = this.#drag(place, event.pointerId);
    } else {
      this.fingers.delete(event.pointerId);
      if (this.isPinching || this.drag?.hasMoved) this.swallowsClick = isOurs = true;
      this.drag = null;
      if (this.fingers.size === 0) this.isPinching = false;
    }
    if (isOurs) event.stopPropagation();
  }

  #drag(place, pointerId) {
    const { drag } = this;
    const moved = [place[0] - drag.place[0], place[1] - drag.place[1]];
    if (!drag.hasMoved && Math.hypot(...moved) < MIN_DRAG_PX) return false;
    if (!drag.hasMoved) this.stage.setPointerCapture(pointerId);
    const { width, height } = this.stage.getBoundingClientRect();
    drag.place = place;
    drag.hasMoved = true;
    this.#move(this.left + moved[0] / width, this.top + moved[1] / height);
    return true;
  }

  #pinch(pointerId, place) {
    if (!this.fingers.has(pointerId)) return;
    const before = [...this.fingers.values()];
    this.fingers.set(pointerId, place);
    if (this.fingers.size !== 2) return;
    const after = [...this.fingers.values()];
    const middle = ([[x0, y0], [x1, y1]]) => this.#place([(x0 + x1) / 2, (y0 + y1) / 2]);
    const [from, to] = [middle(before), middle(after)];
    this.left += to[0] - from[0];
    this.top += to[1] - from[1];
    this.by(gap(...after) / Math.max(gap(...before), 1), to);
  }

  // Returns a place on the screen in sizes of the stage.
  #place([x, y]) {
    const frame = this.stage.getBoundingClientRect();
    return [(x - frame.left) / frame.width, (y - frame.top) / frame.height];
  }

  #move(left, top) {
    this.left = Math.min(Math.max(left, 1 - this.factor), 0);
    this.top = Math.min(Math.max(top, 1 - this.factor), 0);
    this.#draw();
  }

  #draw() {
    const { style } = this.viewer.plane;
    for (const [name, value] of Object.entries({ width: this.factor, height: this.factor, left: this.left, top: this.top })) {
      style.setProperty(name, `${100 * value}%`);
    }
    this.viewer.panel.classList.toggle("zoomed", this.factor > 1);
    this.label.textContent = this.factor > 1 ? `${this.factor.toFixed(1)} ×` : "";
  }
}
