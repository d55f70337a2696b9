"use strict";

// The card of a region: its caption, its look-alikes with the differing words, and its actions.

const MAX_LOOKALIKES_SHOWN = 5;
const LONG_CAPTION = 140; // characters; longer captions use a smaller font
const CROP_PX = 160; // twice the displayed size, for high-resolution screens
const SMALL_CROP_PX = 64;

// Regions also have: caption (undefined: not captioned; null: the model generated no text), waiting (true while it is
// being captioned), partial (first words of the caption, while waiting), problem (error of the last attempt, or null),
// options (of its caption, as JSON), and response (the region in the service's response).
class CaptionViewer extends Viewer {
  // actions: caption(ids), captionAgain(id), edit(id), copyJson(id), copyCurl(id), cutOut(id), remove(id), save(format),
  // commit(), discard(), for buttons and keys; options(): the options of the next caption, as JSON.
  constructor(panel, image, picture, actions) {
    super(panel, image, picture);
    this.source = picture;
    this.actions = actions;
    this.draft = null; // the draft of Pointing, with region, waiting, problem and its error
    this.unfolded = new Set(); // ids of the regions whose look-alikes are all shown
  }

  picked(id) {
    if (!this.panel.classList.contains("drawing")) this.choose(id);
  }

  choose(id) {
    if (id === null || this.byId.get(id).caption !== undefined) super.choose(id);
    else {
      this.select(id);
      this.actions.caption([id]);
    }
  }

  select(id) {
    super.select(id);
    if (id !== null) this.zoom?.reveal(this.byId.get(id).response.bbox_xywh);
  }

  // Shows the first words of a caption, without a new card, whose buttons may just be pressed.
  showPartial(id, text) {
    for (const shown of this.panel.querySelectorAll(`[data-text-of="${id}"]`)) shown.textContent = text;
  }

  // Redraws a region that has changed.
  refresh(id) {
    const region = this.byId.get(id);
    this.items.get(id).querySelector(".text").replaceWith(this.#text(region));
    this.paths.get(id).classList.toggle("captioned", region.caption !== undefined);
    if (this.shown === null || this.shown === id || this.byId.get(this.shown).lookalikes.includes(id)) this.draw();
  }

  setRegions(regions) {
    super.setRegions(regions);
    for (const region of regions) this.paths.get(region.id).classList.toggle("captioned", region.caption !== undefined);
  }

  draw() {
    const focused = this.card.contains(document.activeElement) ? document.activeElement.dataset.action : undefined;
    super.draw();
    if (this.#isDrafting()) {
      this.panel.classList.add("focused");
      this.outline(this.draft.region?.outline ?? "", 0);
    }
    if (focused !== undefined) (this.card.querySelector(`[data-action="${focused}"]`) ?? this.stage).focus({ preventScroll: true });
  }

  #isDrafting() {
    return this.draft !== null && this.shown === null;
  }

  itemParts(region) {
    return [
      node("span", { class: "dot", "aria-hidden": "true" }),
      this.#crop(region, SMALL_CROP_PX),
      this.#text(region),
      region.lookalikes.length > 0 ? node("span", { class: "badge", title: "look-alikes" }, `≈ ${region.lookalikes.length}`) : null,
      node("span", { class: "number" }, `${region.id}`),
    ];
  }

  #text(region) {
    const isFinished = region.caption && !region.waiting;
    const kind = region.problem ? "problem" : isFinished ? "" : "none";
    return node("span", { class: `text ${kind}`, "data-text-of": region.id }, isFinished ? region.caption : withoutCaption(region));
  }

  cardParts(region) {
    if (this.#isDrafting()) return this.#draftParts();
    if (region === null) return this.#overview();
    return [
      node("p", { class: `facts ${depthColour(region)}` }, ...this.facts(region)),
      node("div", { class: "this" }, this.#crop(region), this.#caption(region)),
      region.problem ? node("p", { class: "problem" }, explained(region.problem)) : null,
      region.question ? node("p", { class: "hint" }, "Question: ", region.question) : null,
      ...this.#lookalikes(region),
      node("div", { class: "actions" },
        this.#captionButton(region),
        this.#button("edit", "Edit mask", () => this.actions.edit(region.id)),
        this.#button("json", "Copy JSON", () => this.actions.copyJson(region.id)),
        this.#button("curl", "Copy curl", () => this.actions.copyCurl(region.id)),
        this.#button("cut", "Cut out", () => this.actions.cutOut(region.id)),
        region.prompt ? this.#button("remove", "Remove", () => this.actions.remove(region.id)) : null),
    ];
  }

  #captionButton(region) {
    if (region.waiting) return null;
    if (region.problem) return this.#button("caption", "Try again", () => this.actions.captionAgain(region.id), true);
    if (region.caption === undefined) return this.#button("caption", "Caption this region", () => this.actions.caption([region.id]), true);
    const isOutdated = region.options !== this.actions.options();
    return isOutdated ? this.#button("again", "Caption again", () => this.actions.captionAgain(region.id), true) : null;
  }

  #button(action, text, act, isPrimary = false) {
    const button = node("button", { type: "button", "data-action": action, ...(isPrimary ? { class: "primary" } : {}) }, text);
    button.addEventListener("click", () => act(button));
    return button;
  }

  #overview() {
    const touch = matchMedia("(hover: none)").matches;
    const numCaptioned = this.regions.filter((region) => region.caption !== undefined).length;
    const parts = [node("h2", {}, this.image.id)];
    if (this.regions.length === 0) return [...parts, node("p", { class: "hint" }, "No regions yet.")];
    const hint = touch ? "Tap a region to caption it." : "Hover over a region to highlight it, click to caption it.";
    return [
      ...parts,
      node("p", { class: "hint" }, `${numCaptioned} of ${this.regions.length} regions captioned. ${hint} The other tools mark a region that has no outline yet.`),
      node("div", { class: "actions" },
        this.#button("json", "Copy JSON", () => this.actions.copyJson(null)),
        this.#button("curl", "Copy curl", () => this.actions.copyCurl(null))),
      node("h3", {}, "Download masks and captions"),
      node("div", { class: "actions" },
        this.#button("save-coco", "COCO", () => this.actions.save("coco")),
        this.#button("save-json", "JSON", () => this.actions.save("json")),
        this.#button("save-png", "Picture", () => this.actions.save("png"))),
    ];
  }

  #draftParts() {
    const { points, box, corners, isClosed, mask, region, waiting, problem } = this.draft;
    const inside = points.filter((point) => point.label === 1).length;
    const contents = [
      box ? "a box" : "",
      mask ? "painted" : "",
      corners.length ? `a polygon of ${corners.length} corner${corners.length === 1 ? "" : "s"}` : "",
      inside ? `${inside} inside` : "",
      points.length > inside ? `${points.length - inside} outside` : "",
    ].filter(Boolean).join(", ");
    const missing = corners.length > 0 && !isClosed ? "Click the first corner again, or press Enter, to close the polygon." : "Add a point inside the region.";
    const state = problem ?? (waiting ? "Segmenting …" : region ? "" : missing);
    const hint = box && region ? boxHint(box, region) : mask ? "Paint with the brush, remove with the eraser." : isClosed ? "The region is the polygon." : "Add points to change the mask.";
    return [
      node("p", { class: "facts" }, node("span", {}, "New region"), node("span", {}, contents)),
      region ? node("div", { class: "this" }, this.#crop(region), node("p", { class: "caption pending" }, hint)) : null,
      state ? node("p", { class: problem ? "problem" : "hint" }, state) : null,
      node("div", { class: "actions" },
        region ? this.#button("commit", "Caption this region", () => this.actions.commit(), true) : null,
        this.#button("discard", "Discard", () => this.actions.discard())),
    ];
  }

  #caption(region) {
    if (!region.caption || region.waiting) return node("p", { class: "caption pending", "data-text-of": region.id }, withoutCaption(region));
    const words = wordsOf(region.caption);
    const differs = apart(words, this.#known(region).map((other) => wordsOf(other.caption)));
    const length = region.caption.length > LONG_CAPTION ? "long" : "";
    return node("p", { class: `caption ${length}` }, ...marked(words, differs));
  }

  // Returns the displayed look-alikes.
  #shownLookalikes(region) {
    const all = region.lookalikes.filter((id) => this.byId.has(id)).map((id) => this.byId.get(id));
    return this.unfolded.has(region.id) ? all : all.slice(0, MAX_LOOKALIKES_SHOWN);
  }

  #known(region) {
    return this.#shownLookalikes(region).filter((other) => other.caption);
  }

  #lookalikes(region) {
    if (region.lookalikes.length === 0) return [];
    const shown = this.#shownLookalikes(region);
    const uncaptioned = shown.filter((other) => other.caption === undefined && !other.waiting).map((other) => other.id);
    const same = region.caption ? this.#known(region).filter((other) => plainText(other.caption) === plainText(region.caption)) : [];
    const more = region.lookalikes.length - shown.length;
    return [
      node("h3", {}, region.caption && this.#known(region).length > 0 ? "Differences from its look-alikes" : "Look-alikes"),
      same.length > 0 ? node("p", { class: "problem" }, `Region ${same.map((other) => other.id).join(", ")} has the same caption: it is not unique.`) : null,
      node("ul", { class: "alike" }, ...shown.map((other) => this.#lookalike(region, other))),
      node("div", { class: "actions" },
        region.caption !== undefined && uncaptioned.length > 0 ? this.#button("captions", "Caption the look-alikes", () => this.actions.caption(uncaptioned)) : null,
        more > 0 ? this.#button("more", `Show ${more} more`, () => { this.unfolded.add(region.id); this.draw(); }) : null),
    ];
  }

  #lookalike(region, other) {
    let text = [node("span", { "data-text-of": other.id }, withoutCaption(other))];
    if (other.caption && !other.waiting) {
      const words = wordsOf(other.caption);
      const differs = region.caption ? differing(wordsOf(region.caption), words)[1] : words.map(() => false);
      text = marked(words, differs);
    }
    return node("li", {}, this.link(other.id, this.#crop(other)),
      node("span", { class: other.caption ? "" : "none" }, node("small", {}, `${other.id} `), ...text));
  }

  // Draws a crop of the image around a region, with its outline.
  #crop(region, size = CROP_PX) {
    const canvas = node("canvas", { width: size, height: size, class: "crop", "aria-hidden": "true" });
    const [x, y, width, height] = region.response.bbox_xywh;
    const side = Math.max(width, height, 8) * 1.3;
    const pen = canvas.getContext("2d");
    const scale = size / side;
    pen.setTransform(scale, 0, 0, scale, (side / 2 - x - width / 2) * scale, (side / 2 - y - height / 2) * scale);
    pen.drawImage(this.source, 0, 0, this.image.width, this.image.height);
    const outline = new Path2D(region.outline);
    const around = new Path2D(`M0 0H${this.image.width}V${this.image.height}H0z${region.outline}`);
    pen.fillStyle = "rgb(8 9 11 / 45%)";
    pen.fill(around, "evenodd");
    pen.lineJoin = "round";
    for (const [colour, lineWidth] of [["rgb(0 0 0 / 65%)", 6], ["#fff", 3]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = (lineWidth * Math.sqrt(size / CROP_PX)) / scale;
      pen.stroke(outline);
    }
    return canvas;
  }
}

// Explains the mask of a box: without a matching segment the service returns the box itself.
function boxHint(box, region) {
  const [x, y, width, height] = region.response.bbox_xywh;
  const isRectangle = region.area_px === width * height;
  const sides = [[x, box[0]], [y, box[1]], [x + width, box[0] + box[2]], [y + height, box[1] + box[3]]];
  if (isRectangle && sides.every(([side, drawn]) => Math.abs(side - drawn) <= 1)) return "No segment matches the box: the region is the box itself. Brush and eraser change it.";
  return "The region is the segment that matches the box.";
}

function withoutCaption(region) {
  if (region.waiting) return region.partial || "captioning …";
  if (region.problem) return `failed: ${region.problem.message}`;
  return region.caption === null ? "the model generated no text" : "not captioned yet";
}
