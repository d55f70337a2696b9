// One image of the report: the facts of a region, and the regions that match a search.

const LONG_CAPTION = 140; // characters, from which smaller letters read better

class Panel extends Viewer {
  constructor(element, image, jpeg) {
    super(element, image, jpeg
      ? node("img", { src: jpeg, alt: "", width: image.width, height: image.height, draggable: "false" })
      : node("p", { class: "missing" }, `The picture cannot be shown: ${image.problem}`));
    this.card.setAttribute("aria-live", "polite");
    this.setRegions(image.regions);
    for (const region of image.regions) {
      this.paths.get(region.id).classList.toggle("left-out", region.status !== "ok");
      this.items.get(region.id).classList.toggle("failed", region.status.startsWith("failed"));
    }
  }

  select(id) {
    super.select(id);
    if (id !== null && this.leftOut?.contains(this.items.get(id))) this.leftOut.open = true;
  }

  // Shows only regions for which the predicate `matches` holds; `searching` opens the list of regions without caption.
  filter(matches, searching) {
    let firstShown = null;
    for (const region of this.regions) {
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

  groups(items) {
    const captioned = node("div", { role: "tree", "aria-label": "Regions as a tree" });
    const others = node("div", { role: "tree", "aria-label": "Regions without caption" });
    for (const [id, item] of items) (this.byId.get(id).status === "ok" ? captioned : others).append(item);
    if (others.childElementCount === 0) return [captioned];
    this.leftOut = node("details", {}, node("summary", {}, `${others.childElementCount} without caption`), others);
    return [captioned, this.leftOut];
  }

  itemParts(region) {
    const captioned = region.status === "ok";
    return [
      node("span", { class: "dot", "aria-hidden": "true" }),
      node("span", { class: "text" }, captioned ? region.short ?? region.caption : region.status),
      captioned && region.lookalikes.length > 0 ? node("span", { class: "badge", title: "look-alikes" }, `≈ ${region.lookalikes.length}`) : null,
      region.verdict === "rejected" ? node("span", { class: "badge rejected" }, "rejected") : null,
      node("span", { class: "number" }, `${region.id}`),
    ];
  }

  cardParts(region) {
    if (region === null) return this.#overview();
    const head = node("p", { class: `facts ${depthColour(region)}` }, ...this.facts(region),
      region.verdict === "unchecked" ? null : node("span", { class: `badge ${region.verdict}` }, region.verdict.replace("_", "-")));
    if (region.status !== "ok") return [head, node("p", { class: "caption none" }, `No caption: ${region.status}`)];
    const length = region.caption.length > LONG_CAPTION ? "long" : "";
    return [head, node("p", { class: `caption ${length}` }, region.caption), node("dl", {}, ...this.#rows(region))];
  }

  #overview() {
    const captioned = this.regions.filter((region) => region.status === "ok").length;
    const touch = matchMedia("(hover: none)").matches;
    return [
      node("h2", {}, this.image.id),
      node("p", { class: "hint" }, `${captioned} of ${this.regions.length} regions captioned. ${touch ? "Tap" : "Point at"} the picture or the list to read them.`),
      node("p", { class: "uri" }, this.image.uri),
    ];
  }

  #rows(region) {
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
      const links = region.lookalikes.filter((id) => this.byId.has(id)).map((id) => node("li", {}, this.link(id, `${id}`), ` ${this.byId.get(id).caption ?? ""}`));
      rows.push(node("dt", {}, "Look-alikes"), node("dd", {}, node("ul", { class: "lookalikes" }, ...links)));
    }
    return rows;
  }
}
