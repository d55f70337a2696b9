"use strict";

// The mask that brush and eraser change, on a canvas over the picture.

const MAX_CELLS = 4_000_000; // a larger image is painted on a coarser grid, which bounds memory and time
const INSIDE_ALPHA = 128;

class Brush {
  constructor({ width, height }) {
    this.size = [height, width];
    this.factor = Math.ceil(Math.sqrt(Math.max(1, (width * height) / MAX_CELLS)));
    this.canvas = node("canvas", { class: "paint", width: Math.ceil(width / this.factor), height: Math.ceil(height / this.factor), "aria-hidden": "true" });
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    this.pen.lineCap = this.pen.lineJoin = "round";
    this.pen.strokeStyle = this.pen.fillStyle = "#35c8f5";
  }

  // Paints or erases a line between two places; all lengths are pixels of the image.
  stroke(from, to, diameter, erases) {
    const [x0, y0, x1, y1] = [from.x, from.y, to.x, to.y].map((value) => value / this.factor);
    this.pen.globalCompositeOperation = erases ? "destination-out" : "source-over";
    this.pen.lineWidth = Math.max(diameter / this.factor, 1);
    this.pen.beginPath();
    this.pen.moveTo(x0, y0);
    this.pen.lineTo(x1 + 0.001, y1); // a line without length is not painted
    this.pen.stroke();
  }

  // Replaces the painted mask by one in run lengths; null: by nothing.
  show(rle) {
    this.pen.globalCompositeOperation = "source-over";
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (rle === null) return;
    const { factor } = this;
    eachColumn(rle, (column, top, bottom) => {
      if (column % factor > 0) return;
      const first = Math.round(top / factor);
      this.pen.fillRect(column / factor, first, 1, Math.max(Math.round(bottom / factor) - first, bottom > top ? 1 : 0));
    });
  }

  // Returns the painted mask in run lengths; null if nothing is painted.
  mask() {
    const { width, height } = this.canvas;
    const { data } = this.pen.getImageData(0, 0, width, height);
    const [imageHeight, imageWidth] = this.size;
    const runs = [];
    let [length, isInside, area] = [0, false, 0];
    for (let x = 0; x < imageWidth; x++) {
      const column = Math.floor(x / this.factor);
      for (let row = 0; row < height; row++) {
        const rows = Math.min(this.factor, imageHeight - row * this.factor);
        if (data[4 * (row * width + column) + 3] >= INSIDE_ALPHA !== isInside) {
          runs.push(length);
          length = 0;
          isInside = !isInside;
        }
        length += rows;
        if (isInside) area += rows;
      }
    }
    return area === 0 ? null : { size: this.size, counts: compressed([...runs, length]) };
  }
}
