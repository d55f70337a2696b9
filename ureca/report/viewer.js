"use strict";

// One image: its picture with outlines, the caption card, and the tree of its regions, kept in step.

const SVG = "http://www.w3.org/2000/svg";
const NUM_DEPTH_COLOURS = 6;
const LONG_CAPTION = 140; // characters, from which smaller letters read better

// Text only ever enters the page as text: captions and file names are not ours.
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

class Viewer {
  constructor(panel, image, jpeg) {
    this.panel = panel;
    this.image = image;
    this.byId = new Map(image.regions.map((region) => [region.id, region]));
    this.paths = new Map();
    this.items = new Map();
    this.selected = null;
    this.hovered = null;
    this.shown = undefined;
    panel.setAttribute("aria-label", image.id);
    panel.append(this.#picture(jpeg), this.#side());
    this.#show();
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
    if (id !== null && this.leftOut?.contains(this.items.get(id))) this.leftOut.open = true;
    this.#show();
  }

  // Hides what `matches` (a predicate over regions) refuses; `searching` opens the list of regions without caption.
  filter(matches, searching) {
    let firstShown = null;
    for (const region of this.image.regions) {
      const shown = matches(region);
      this.items.get(region.id).hidden = !shown;
      this.paths.get(region.id).classList.toggle("filtered", !shown);
      this.items.get(region.id).tabIndex = -1;
      if (shown && firstShown === null) firstShown = region.id;
    }
    if (firstShown !== null) this.items.get(firstShown).tabIndex = 0;
    if (this.leftOut) {
      const some = this.leftOut.querySelector('[role="treeitem"]:not([hidden])') !== null;
      this.leftOut.hidden = !some;
      this.leftOut.open = some && searching;
    }
    this.select(null);
  }

  #picture(jpeg) {
    const { width, height, id, regions, problem } = this.image;
    const frame = node("div", { class: "picture" });
    const stage = node("div", { class: "stage", tabindex: "0", role: "group", "aria-label": `${id}: use the arrow keys to walk through its regions` });
    stage.style.setProperty("--ratio", width / height);
    if (jpeg) stage.append(node("img", { src: jpeg, alt: "", width, height, draggable: "false" }));
    else stage.append(node("p", { class: "missing" }, `The picture cannot be shown: ${problem}`));
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", preserveAspectRatio: "none" });
    this.spotlight = shape("path", { class: "spotlight", "fill-rule": "evenodd" });
    // Painted parents first, the deepest region under the pointer is the one that it meets.
    const painted = regions.toSorted((a, b) => a.depth - b.depth || b.area_px - a.area_px);
    for (const region of painted) {
      const path = shape("path", { d: region.outline, class: `region depth-${region.depth % NUM_DEPTH_COLOURS}`, "data-id": region.id });
      if (region.status !== "ok") path.classList.add("left-out");
      this.paths.set(region.id, path);
      svg.append(path);
    }
    this.halo = shape("path", { class: "halo" });
    this.front = shape("path", { class: "front" });
    svg.append(this.spotlight, this.halo, this.front);
    svg.addEventListener("pointermove", (event) => {
      const id = this.#under(event);
      if (event.pointerType !== "touch" && id !== this.hovered) this.hover(id);
    });
    svg.addEventListener("pointerleave", () => this.hover(null));
    svg.addEventListener("click", (event) => {
      const id = this.#under(event);
      this.select(id === this.selected ? null : id);
    });
    stage.addEventListener("keydown", (event) => this.#walk(event, false));
    stage.append(svg);
    frame.append(stage);
    return frame;
  }

  #under(event) {
    const id = event.target.dataset.id;
    return id === undefined ? null : Number(id);
  }

  #side() {
    this.card = node("div", { class: "card", "aria-live": "polite" });
    this.tree = node("div", { class: "tree" });
    const captioned = node("div", { role: "tree", "aria-label": "Regions as a tree" });
    const others = node("div", { role: "tree", "aria-label": "Regions without caption" });
    for (const region of this.image.regions) {
      (region.status === "ok" ? captioned : others).append(this.#item(region));
    }
    this.tree.append(captioned);
    if (others.childElementCount > 0) {
      this.leftOut = node("details", {}, node("summary", {}, `${others.childElementCount} without caption`), others);
      this.tree.append(this.leftOut);
    }
    this.tree.querySelector('[role="treeitem"]').tabIndex = 0;
    this.tree.addEventListener("keydown", (event) => this.#walk(event, true));
    return node("div", { class: "side" }, this.card, this.tree);
  }

  #item(region) {
    const captioned = region.status === "ok";
    const item = node("div", { role: "treeitem", "aria-level": region.depth + 1, "aria-selected": "false", tabindex: "-1", class: `depth-${region.depth % NUM_DEPTH_COLOURS}`, "data-id": region.id },
      node("span", { class: "dot", "aria-hidden": "true" }),
      node("span", { class: "text" }, captioned ? region.short ?? region.caption : region.status),
      captioned && region.lookalikes.length > 0 ? node("span", { class: "badge", title: "look-alikes" }, `≈ ${region.lookalikes.length}`) : null,
      region.verdict === "rejected" ? node("span", { class: "badge rejected" }, "rejected") : null,
      node("span", { class: "number" }, `${region.id}`));
    item.style.setProperty("--depth", region.depth);
    item.classList.toggle("failed", region.status.startsWith("failed"));
    item.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && this.hover(region.id));
    item.addEventListener("pointerleave", () => this.hover(null));
    item.addEventListener("focus", () => item.matches(":focus-visible") && this.select(region.id));
    item.addEventListener("click", () => this.select(region.id));
    this.items.set(region.id, item);
    return item;
  }

  // Arrow keys: up and down in the order of the tree, left to the parent, right to the first part.
  #walk(event, moveFocus) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const shown = [...this.items].filter(([, item]) => item.checkVisibility()).map(([id]) => id);
    const at = shown.indexOf(this.selected);
    const targets = {
      ArrowDown: () => shown[Math.min(at + 1, shown.length - 1)],
      ArrowUp: () => shown[Math.max(at - 1, 0)],
      Home: () => shown[0],
      End: () => shown.at(-1),
      ArrowLeft: () => (this.selected === null ? undefined : this.byId.get(this.selected).parent),
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
    const id = this.hovered ?? this.selected;
    if (id === this.shown) return;
    this.shown = id;
    const region = id === null ? null : this.byId.get(id);
    const lookalikes = new Set(region?.lookalikes);
    for (const [other, path] of this.paths) path.classList.toggle("lookalike", lookalikes.has(other));
    for (const [other, item] of this.items) {
      item.classList.toggle("current", other === id);
      item.classList.toggle("lookalike", lookalikes.has(other));
    }
    this.panel.classList.toggle("focused", region !== null);
    const { width, height } = this.image;
    this.spotlight.setAttribute("d", region ? `M0 0H${width}V${height}H0z${region.outline}` : "");
    this.halo.setAttribute("d", region ? region.outline : "");
    this.front.setAttribute("d", region ? region.outline : "");
    this.front.setAttribute("class", `front depth-${(region?.depth ?? 0) % NUM_DEPTH_COLOURS}`);
    this.card.replaceChildren(...(region ? this.#caption(region) : this.#overview()));
    this.card.scrollTop = 0;
    if (region) this.#reveal(this.items.get(id));
  }

  // Scrolls the list alone: the page must not move under the pointer.
  #reveal(item) {
    const list = this.tree.getBoundingClientRect();
    const box = item.getBoundingClientRect();
    if (box.height === 0) return;
    if (box.top < list.top) this.tree.scrollTop += box.top - list.top - 8;
    if (box.bottom > list.bottom) this.tree.scrollTop += box.bottom - list.bottom + 8;
  }

  #overview() {
    const captioned = this.image.regions.filter((region) => region.status === "ok").length;
    const touch = matchMedia("(hover: none)").matches;
    return [
      node("h2", {}, this.image.id),
      node("p", { class: "hint" }, `${captioned} of ${this.image.regions.length} regions captioned. ${touch ? "Tap" : "Point at"} the picture or the list to read them.`),
      node("p", { class: "uri" }, this.image.uri),
    ];
  }

  #caption(region) {
    const { width, height } = this.image;
    const share = (100 * region.area_px) / (width * height);
    const head = node("p", { class: `facts depth-${region.depth % NUM_DEPTH_COLOURS}` },
      node("span", { class: "dot", "aria-hidden": "true" }),
      node("span", {}, `Region ${region.id}`),
      node("span", {}, this.byId.has(region.parent) ? node("span", {}, "part of ", this.#link(region.parent, `${region.parent}`)) : "top level"),
      node("span", {}, `depth ${region.depth}`),
      node("span", {}, `${share < 0.1 ? "< 0.1" : share.toFixed(1)} % of the image`),
      region.verdict === "unchecked" ? null : node("span", { class: `badge ${region.verdict}` }, region.verdict));
    if (region.status !== "ok") return [head, node("p", { class: "caption none" }, `No caption: ${region.status}`)];
    const rows = [];
    if (region.short === null && region.detailed === null) {
      // A trained model writes one caption.
    } else if (region.short === region.caption && region.detailed === region.caption) {
      rows.push(node("dd", { class: "same" }, "Its short and its detailed caption are the same."));
    } else if (region.short === region.detailed) {
      rows.push(node("dt", {}, "Short and detailed"), node("dd", {}, region.short ?? "–"));
    } else {
      rows.push(node("dt", {}, "Short"), node("dd", {}, region.short ?? "–"));
      rows.push(node("dt", {}, "Detailed"), node("dd", {}, region.detailed ?? "–"));
    }
    if (region.verdict_reason) rows.push(node("dt", {}, "Verdict"), node("dd", {}, region.verdict_reason));
    if (region.lookalikes.length > 0) {
      const links = region.lookalikes.filter((id) => this.byId.has(id)).map((id) => node("li", {}, this.#link(id, `${id}`), ` ${this.byId.get(id).caption ?? ""}`));
      rows.push(node("dt", {}, "Look-alikes"), node("dd", {}, node("ul", { class: "lookalikes" }, ...links)));
    }
    const length = region.caption.length > LONG_CAPTION ? "long" : "";
    return [head, node("p", { class: `caption ${length}` }, region.caption), node("dl", {}, ...rows)];
  }

  #link(id, text) {
    const link = node("button", { type: "button", class: "link", "aria-label": `Region ${id}` }, text);
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
