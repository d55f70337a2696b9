"use strict";

// Converts masks in COCO's compressed run lengths to SVG outlines. (The report contains outlines instead of masks, which
// keeps a file with hundreds of masks small.)

const MAX_TRACED_SIDE = 480; // cells; a larger mask is traced on a coarser grid
const MAX_RINGS = 60;
const TOLERANCE = 0.4; // maximum deviation of an outline, in cells

// Returns the outline of a mask ({size: [height, width], counts}) with a known bounding box, for the fill rule evenodd.
function outlineOf(rle, [left, top, width, height]) {
  const factor = Math.max(1, Math.ceil(Math.max(width, height) / MAX_TRACED_SIDE));
  const grid = coverage(rle, [left, top, width, height], factor);
  const rings = trace(grid).sort((a, b) => b.length - a.length).slice(0, MAX_RINGS).map((ring) => simplified(ring));
  const place = ([x, y]) => `${tenths(left + Math.min(x * factor, width))} ${tenths(top + Math.min(y * factor, height))}`;
  return rings.map((ring) => `M${ring.map(place).join("L")}z`).join("");
}

function tenths(value) {
  return Math.round(value * 10) / 10;
}

// Rasterizes the mask to cells of factor x factor pixels within the box: a cell is inside if the mask covers half of it,
// or touches it where the mask is too thin for that.
function coverage(rle, [left, top, width, height], factor) {
  const rows = Math.ceil(height / factor);
  const columns = Math.ceil(width / factor);
  const covered = new Uint32Array(rows * columns);
  eachColumn(rle, (column, first, end) => {
    const cell = Math.floor((column - left) / factor) * rows;
    for (let row = first; row < end; row++) covered[cell + Math.floor((row - top) / factor)]++;
  });
  const least = covered.some((count) => 2 * count >= factor * factor) ? factor * factor : 1;
  const inside = (x, y) => x >= 0 && y >= 0 && x < columns && y < rows && 2 * covered[x * rows + y] >= least;
  return { rows, columns, inside };
}

const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up

// Traces all boundaries, including holes, as rings of the midpoints of edges between inside and outside.
function trace({ rows, columns, inside }) {
  const across = columns + 1;
  const leaving = new Uint8Array(across * (rows + 1)); // per corner of the cells, one bit for each direction of an outgoing edge
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      if (!inside(x, y)) continue;
      if (!inside(x, y - 1)) leaving[y * across + x] |= 1;
      if (!inside(x + 1, y)) leaving[y * across + x + 1] |= 2;
      if (!inside(x, y + 1)) leaving[(y + 1) * across + x + 1] |= 4;
      if (!inside(x - 1, y)) leaving[(y + 1) * across + x] |= 8;
    }
  }
  const rings = [];
  for (let corner = 0; corner < leaving.length; corner++) {
    while (leaving[corner]) rings.push(follow(leaving, corner, across));
  }
  return rings;
}

// Removes and returns the edges of one ring. Where two rings touch it turns left: diagonal cells are connected.
function follow(leaving, corner, across) {
  const ring = [];
  let direction = Math.log2(leaving[corner] & -leaving[corner]);
  while (leaving[corner]) {
    direction = [3, 0, 1, 2].map((turn) => (direction + turn) % 4).find((way) => leaving[corner] & (1 << way));
    leaving[corner] &= ~(1 << direction);
    const [right, down] = STEPS[direction];
    ring.push([(corner % across) + right / 2, Math.floor(corner / across) + down / 2]);
    corner += right + down * across;
  }
  return ring;
}

// Simplifies a ring with the Douglas-Peucker algorithm, starting from two distant points.
function simplified(ring) {
  if (ring.length <= 8) return ring;
  const kept = new Uint8Array(ring.length + 1);
  const closed = [...ring, ring[0]];
  const farthest = ring.reduce((best, point, index) => (gap(point, ring[0]) > gap(ring[best], ring[0]) ? index : best), 0);
  kept[0] = kept[farthest] = 1;
  const pending = [[0, farthest], [farthest, ring.length]];
  while (pending.length > 0) {
    const [from, to] = pending.pop();
    let most = TOLERANCE;
    let split = -1;
    for (let at = from + 1; at < to; at++) {
      const distance = offLine(closed[at], closed[from], closed[to]);
      if (distance > most) [most, split] = [distance, at];
    }
    if (split < 0) continue;
    kept[split] = 1;
    pending.push([from, split], [split, to]);
  }
  return ring.filter((_, index) => kept[index]);
}

function gap([x0, y0], [x1, y1]) {
  return Math.hypot(x1 - x0, y1 - y0);
}

function offLine(point, from, to) {
  const length = gap(from, to);
  if (length === 0) return gap(point, from);
  return Math.abs((to[0] - from[0]) * (from[1] - point[1]) - (from[0] - point[0]) * (to[1] - from[1])) / length;
}
