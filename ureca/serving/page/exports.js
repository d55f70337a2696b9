"use strict";

// Files and commands that reproduce what the page shows.

const MIN_PICTURE_PX = 1000; // longer side of the annotated picture
const MAX_PICTURE_PX = 2600;
const MAX_ARGUMENT = 100_000; // characters; Linux permits 128 kB

// Returns the regions as COCO instances with captions, with the fields of `ureca export --format coco`.
function cocoOf(image, regions, description) {
  const annotations = regions.map(({ response }, index) => ({
    id: index + 1,
    image_id: 1,
    region_id: response.region_id,
    caption: response.caption ?? null,
    category_id: 1,
    bbox: response.bbox_xywh,
    area: response.area_px,
    segmentation: response.rle,
    iscrowd: 0,
  }));
  return {
    info: { description },
    licenses: [],
    categories: [{ id: 1, name: "region", supercategory: "region" }],
    images: [{ id: 1, image_id: image.id, file_name: image.id, height: image.height, width: image.width }],
    annotations,
  };
}

// Draws the image with numbered outlines, and the captions below it; resolves to a PNG file.
function annotatedPicture(picture, image, regions, colourOf) {
  const longer = Math.max(image.width, image.height);
  const scale = Math.min(Math.max(1, MIN_PICTURE_PX / longer), MAX_PICTURE_PX / longer);
  const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * scale)));
  const unit = Math.round(Math.max(width, height) / 70);
  const canvas = node("canvas", { width, height });
  const pen = canvas.getContext("2d");
  const font = `${unit}px system-ui, sans-serif`;
  pen.font = font;
  const lines = regions.filter((region) => region.caption).flatMap((region) => {
    const indent = 3 * unit;
    return wrapped(pen, region.caption, width - indent - unit).map((text, index) => ({ number: index === 0 ? `${region.id}` : "", text, indent }));
  });
  canvas.height = height + (lines.length > 0 ? (lines.length + 1) * 1.5 * unit : 0);
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, canvas.height);
  pen.drawImage(picture, 0, 0, width, height);
  pen.lineJoin = "round";
  for (const region of regions) {
    const outline = new Path2D();
    outline.addPath(new Path2D(region.outline), new DOMMatrix().scale(scale));
    for (const [colour, line] of [["rgb(0 0 0 / 60%)", unit / 4], [colourOf(region), unit / 8]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.stroke(outline);
    }
  }
  pen.font = `600 ${font}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (const region of regions) {
    const [x, y] = placeInside(region.response.rle).map((value) => value * scale);
    const half = pen.measureText(`${region.id}`).width / 2 + unit / 4;
    pen.fillStyle = "rgb(0 0 0 / 70%)";
    pen.fillRect(x - half, y - 0.6 * unit, 2 * half, 1.2 * unit);
    pen.fillStyle = "#fff";
    pen.fillText(`${region.id}`, x, y);
  }
  pen.fillStyle = "#1f1d1a";
  pen.textAlign = "left";
  lines.forEach(({ number, text, indent }, index) => {
    const y = height + (index + 1.2) * 1.5 * unit;
    pen.font = `600 ${font}`;
    pen.fillText(number, unit / 2, y);
    pen.font = font;
    pen.fillText(text, indent, y);
  });
  return pngOf(canvas);
}

// Cuts a region out of the image in full resolution: transparent outside of its mask; resolves to a PNG file.
function cutOut(picture, image, { bbox_xywh: [left, top, width, height], rle }) {
  const canvas = node("canvas", { width, height });
  const pen = canvas.getContext("2d");
  eachColumn(rle, (column, first, end) => pen.rect(column - left, first - top, 1, end - first));
  pen.fill();
  pen.globalCompositeOperation = "source-in";
  pen.drawImage(picture, -left, -top, image.width, image.height);
  return pngOf(canvas);
}

function pngOf(canvas) {
  return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large for this browser"))), "image/png"));
}

// Breaks a text into lines of a width; a longer word has a line of its own.
function wrapped(pen, text, width) {
  const lines = [];
  for (const word of wordsOf(text)) {
    const longer = lines.length > 0 ? `${lines.at(-1)} ${word}` : word;
    if (lines.length > 0 && pen.measureText(longer).width <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

// Saves a file to the user's downloads.
function save(name, blob) {
  const link = node("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Formats a request as a shell command. It reads the token from the environment and does not contain it. origin: URL of
// an example, "pasted" for an image without a file, or null.
function curlOf(url, fileName, origin, request, hasToken) {
  const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
  const file = fileName.replace(/["\\]/g, String.raw`\$&`);
  const token = hasToken ? ' -H "Authorization: Bearer $URECA_TOKEN"' : "";
  const isExample = origin !== null && origin !== "pasted";
  const image = isExample ? `image=@-;filename="${file}"` : `image=@"${file}"`;
  const before = isExample ? `curl --fail --silent --show-error ${quoted(origin)} | ` : origin === "pasted" ? `# Save the picture as ${fileName} first.\n` : "";
  const json = JSON.stringify(request);
  const command = `${before}curl ${quoted(url)}${token} -F ${quoted(image)}`;
  if (json.length <= MAX_ARGUMENT || isExample) return `${command} --form-string ${quoted(`request=${json}`)}`;
  return `${command} -F 'request=<-' <<'END'\n${json}\nEND`; // too long for an argument
}
