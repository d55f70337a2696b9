"use strict";

// COCO's run lengths: alternately outside and inside, in column-major order.

// Decodes compressed run lengths to an array.
function runLengths(counts) {
  if (Array.isArray(counts)) return counts;
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0;
    let shift = 0;
    let bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32 && at < counts.length);
    if (bits & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// Compresses an array of run lengths.
function compressed(runs) {
  const codes = [];
  runs.forEach((run, at) => {
    let value = at > 2 ? run - runs[at - 2] : run;
    for (let more = true; more;) {
      const bits = value & 31;
      value >>= 5;
      more = value !== (bits & 16 ? -1 : 0);
      codes.push(String.fromCharCode((more ? bits | 32 : bits) + 48));
    }
  });
  return codes.join("");
}

// Calls visit(column, top, bottom) for the inside of a mask, column by column; bottom is excluded.
function eachColumn({ size: [height], counts }, visit) {
  let at = 0;
  runLengths(counts).forEach((length, index) => {
    const end = at + length;
    while (index % 2 === 1 && at < end) {
      const column = Math.floor(at / height);
      const stop = Math.min(end, (column + 1) * height);
      visit(column, at - column * height, stop - column * height);
      at = stop;
    }
    at = end;
  });
}

// Returns a place inside a mask: the middle of its longest vertical run.
function placeInside(rle) {
  let [most, place] = [0, [0, 0]];
  eachColumn(rle, (column, top, bottom) => {
    if (bottom - top > most) [most, place] = [bottom - top, [column + 0.5, (top + bottom) / 2]];
  });
  return place;
}
