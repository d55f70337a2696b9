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
  // `words` of the search are marked, also where they are in a text that the list does not show.
  filter(matches, searching, words = []) {
    let firstShown = null;
    for (const region of this.regions) {
      const shown = matches(region);
      this.items.get(region.id).hidden = !shown;
      this.items.get(region.id).querySelector(".text").replaceChildren(...this.#listed(region, shown ? words : []));
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
      node("span", { class: "text" }, ...this.#listed(region, [])),
      captioned && region.lookalikes.length > 0 ? node("span", { class: "badge", title: "look-alikes" }, `≈ ${region.lookalikes.length}`) : null,
      ["rejected", "self_checked"].includes(region.verdict) ? node("span", { class: `badge ${region.verdict}` }, region.verdict.replace("_", "-")) : null,
      node("span", { class: "number" }, `${region.id}`),
    ];
  }

  // Returns the text of a region in the list, and the other text in which a word of the search is.
  #listed(region, words) {
    const text = (region.status === "ok" ? region.caption : region.status) ?? "";
    const others = { short: region.short, detailed: region.detailed, status: region.status, verdict: region.verdict_reason };
    const missing = words.filter((word) => !text.toLowerCase().includes(word));
    const found = Object.entries(others).find(([, other]) => missing.length > 0 && missing.every((word) => other?.toLowerCase().includes(word)))
      ?? Object.entries(others).find(([, other]) => missing.some((word) => other?.toLowerCase().includes(word)));
    const parts = marked(text, words);
    if (found === undefined) return parts;
    return [...parts, node("small", { class: "why" }, ` ${found[0]}: `, ...marked(around(found[1], missing), words))];
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

// Renders a text as nodes, with the words of a search (in lower case) in <mark> elements.
function marked(text, words) {
  const lower = text.toLowerCase();
  const parts = [];
  for (let at = 0; at < text.length;) {
    const hits = words.map((word) => [lower.indexOf(word, at), word.length]).filter(([start]) => start >= 0);
    // Letters whose lower case is longer would shift the places.
    if (hits.length === 0 || lower.length !== text.length) return [...parts, text.slice(at)];
    const [start, length] = hits.reduce((best, hit) => (hit[0] < best[0] || (hit[0] === best[0] && hit[1] > best[1]) ? hit : best));
    if (start > at) parts.push(text.slice(at, start));
    parts.push(node("mark", {}, text.slice(start, start + length)));
    at = start + length;
  }
  return parts;
}

const CONTEXT = 40; // characters before and after a word of the search

// Cuts a long text to the surroundings of the first word of the search in it.
function around(text, words) {
  const at = Math.min(...words.map((word) => text.toLowerCase().indexOf(word)).filter((start) => start >= 0));
  const [first, last] = [Math.max(0, at - CONTEXT), at + CONTEXT];
  return `${first > 0 ? "… " : ""}${text.slice(first, last)}${last < text.length ? " …" : ""}`;
}
