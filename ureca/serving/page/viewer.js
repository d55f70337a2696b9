"use strict";

// An image with its regions: the picture with outlines and the tree, with a common selection. Base of the HTML report and
// of the service's page, which define the contents of list items and cards.

const SVG = "http://www.w3.org/2000/svg";
const NUM_DEPTH_COLOURS = 6;

// Adds text as text nodes only: captions and file names are untrusted.
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function depthColour(region) {
  return `depth-${region.depth % NUM_DEPTH_COLOURS}`;
}

// Regions have: id, parent (-1: none), depth, area_px, outline (SVG path data) and lookalikes (ids).
class Viewer {
  // image: id, width and height in pixels; picture: element with its pixels.
  constructor(panel, image, picture) {
    this.panel = panel;
    this.image = image;
    this.regions = [];
    this.byId = new Map();
    this.paths = new Map();
    this.items = new Map();
    this.selected = null;
    this.hovered = null;
    this.shown = undefined;
    this.card = node("div", { class: "card" });
    this.tree = node("div", { class: "tree" });
    this.tree.addEventListener("keydown", (event) => this.#walk(event, true));
    panel.setAttribute("aria-label", image.id);
    panel.append(this.#picture(picture), node("div", { class: "side" }, this.card, this.tree));
  }

  // Contents of a region's list item: an array of nodes. To be overridden.
  itemParts(_region) { return []; }

  // Contents of the card of a region, or of the image (null): an array of nodes. To be overridden.
  cardParts(_region) { return []; }

  // Arranges the items of the regions; returns the elements of the list.
  groups(items) {
    return [node("div", { role: "tree", "aria-label": "Regions as a tree" }, ...items.values())];
  }

  // Handles the choice of a region by click, tap or Enter; null: a place without a region.
  choose(id) {
    this.select(id === this.selected ? null : id);
  }

  // Handles a click into the picture.
  picked(id) {
    this.choose(id);
  }

  // Replaces the regions, which are in depth-first order.
  setRegions(regions) {
    const focused = this.tree.contains(document.activeElement) ? Number(document.activeElement.dataset.id) : null;
    this.regions = regions;
    this.byId = new Map(regions.map((region) => [region.id, region]));
    // Paints parents first, so that the pointer hits the deepest region under it.
    const painted = regions.toSorted((a, b) => a.depth - b.depth || b.area_px - a.area_px);
    this.paths = new Map(painted.map((region) => [region.id, shape("path", { d: region.outline, class: `region ${depthColour(region)}`, "data-id": region.id })]));
    this.outlines.replaceChildren(...this.paths.values());
    this.items = new Map(regions.map((region) => [region.id, this.#item(region)]));
    this.tree.replaceChildren(...this.groups(this.items));
    const first = this.tree.querySelector('[role="treeitem"]');
    if (first) first.tabIndex = 0;
    this.hovered = null;
    this.select(this.byId.has(this.selected) ? this.selected : null);
    this.draw();
    this.items.get(focused)?.focus({ preventScroll: true });
  }

  hover(id) {
    this.hovered = id;
    this.#show();
  }

  select(id) {
    this.selected = id;
    this.hovered = null;
    for (const [other, item] of this.items) {
      item.setAttribute("aria-selected", String(other === id));
      if (id !== null) item.tabIndex = other === id ? 0 : -1;
    }
    this.#show();
  }

  #picture(picture) {
    const { width, height, id } = this.image;
    this.stage = node("div", { class: "stage", tabindex: "0", role: "group", "aria-label": `${id}: use the arrow keys to move through its regions` });
    this.stage.style.setProperty("--ratio", width / height);
    this.svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", preserveAspectRatio: "none" });
    this.outlines = shape("g", {});
    this.spotlight = shape("path", { class: "spotlight", "fill-rule": "evenodd" });
    this.halo = shape("path", { class: "halo" });
    this.front = shape("path", { class: "front" });
    this.svg.append(this.outlines, this.spotlight, this.halo, this.front);
    this.svg.addEventListener("pointermove", (event) => {
      const id = this.#under(event);
      if (event.pointerType !== "touch" && id !== this.hovered) this.hover(id);
    });
    this.svg.addEventListener("pointerleave", () => this.hover(null));
    this.svg.addEventListener("click", (event) => this.picked(this.#under(event)));
    this.stage.addEventListener("keydown", (event) => this.#walk(event, false));
    this.plane = node("div", { class: "plane" }, picture, this.svg);
    this.stage.append(this.plane);
    return node("div", { class: "picture" }, this.stage);
  }

  #under(event) {
    const id = event.target.dataset.id;
    return id === undefined ? null : Number(id);
  }

  #item(region) {
    const item = node("div", { role: "treeitem", "aria-level": region.depth + 1, "aria-selected": "false", tabindex: "-1", class: depthColour(region), "data-id": region.id }, ...this.itemParts(region));
    item.style.setProperty("--depth", region.depth);
    item.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && this.hover(region.id));
    item.addEventListener("pointerleave", () => this.hover(null));
    item.addEventListener("focus", () => item.matches(":focus-visible") && this.select(region.id));
    item.addEventListener("click", () => this.choose(region.id));
    return item;
  }

  // Arrow keys: up and down in the order of the tree, left to the parent, right to the first child.
  #walk(event, moveFocus) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
    const shown = [...this.items].filter(([, item]) => item.checkVisibility()).map(([id]) => id);
    const at = shown.indexOf(this.selected);
    const targets = {
      ArrowDown: () => shown[Math.min(at + 1, shown.length - 1)],
      ArrowUp: () => shown[Math.max(at - 1, 0)],
      Home: () => shown[0],
      End: () => shown.at(-1),
      ArrowLeft: () => this.byId.get(this.selected)?.parent,
      ArrowRight: () => shown.find((id) => this.byId.get(id).parent === (this.selected ?? -1)),
      Escape: () => null,
    };
    if (!(event.key in targets)) return;
    event.preventDefault();
    const id = targets[event.key]();
    if (id === undefined || (id !== null && !shown.includes(id))) return;
    this.select(id);
    if (moveFocus && id !== null) this.items.get(id).focus({ preventScroll: true });
  }

  #show() {
    if ((this.hovered ?? this.selected) !== this.shown) this.draw();
  }

  // Redraws the hovered or selected region and its card.
  draw() {
    const id = this.hovered ?? this.selected;
    const moved = id !== this.shown;
    this.shown = id;
    const region = id === null ? null : this.byId.get(id);
    const lookalikes = new Set(region?.lookalikes);
    for (const [other, path] of this.paths) path.classList.toggle("lookalike", lookalikes.has(other));
    for (const [other, item] of this.items) {
      item.classList.toggle("current", other === id);
      item.classList.toggle("lookalike", lookalikes.has(other));
    }
    this.panel.classList.toggle("focused", region !== null);
    this.outline(region?.outline ?? "", region?.depth ?? 0);
    this.card.replaceChildren(...this.cardParts(region).filter((part) => part !== null));
    if (!moved) return;
    this.card.scrollTop = 0;
    if (region) this.#reveal(this.items.get(id));
  }

  // Highlights an outline (SVG path data).
  outline(outline, depth) {
    const { width, height } = this.image;
    this.spotlight.setAttribute("d", outline && `M0 0H${width}V${height}H0z${outline}`);
    this.halo.setAttribute("d", outline);
    this.front.setAttribute("d", outline);
    this.front.setAttribute("class", `front ${depthColour({ depth })}`);
  }

  // Scrolls the list only: the page must not move under the pointer.
  #reveal(item) {
    const list = this.tree.getBoundingClientRect();
    const box = item.getBoundingClientRect();
    if (box.height === 0) return;
    if (box.top < list.top) this.tree.scrollTop += box.top - list.top - 8;
    if (box.bottom > list.bottom) this.tree.scrollTop += box.bottom - list.bottom + 8;
  }

  facts(region) {
    const { width, height } = this.image;
    const share = (100 * region.area_px) / (width * height);
    return [
      node("span", { class: "dot", "aria-hidden": "true" }),
      node("span", {}, `Region ${region.id}`),
      node("span", {}, this.byId.has(region.parent) ? node("span", {}, "part of ", this.link(region.parent, `${region.parent}`)) : "top level"),
      node("span", {}, `depth ${region.depth}`),
      node("span", {}, `${share < 0.1 ? "< 0.1" : share.toFixed(1)} % of the image`),
    ];
  }

  // Creates a button that selects a region, and highlights it while hovered or focused.
  link(id, ...content) {
    const link = node("button", { type: "button", class: "link", "aria-label": `Region ${id}` }, ...content);
    const mark = (on) => this.paths.get(id).classList.toggle("pointed", on);
    link.addEventListener("pointerenter", () => mark(true));
    link.addEventListener("pointerleave", () => mark(false));
    link.addEventListener("focus", () => mark(true));
    link.addEventListener("blur", () => mark(false));
    link.addEventListener("click", () => {
      mark(false);
      this.select(id);
      this.items.get(id).focus({ preventScroll: true });
    });
    return link;
  }
}
