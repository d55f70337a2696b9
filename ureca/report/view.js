"use strict";

// The regions of a run: filters with histograms, and pages of results as a grid.

const PAGE_SIZE = 60;
const STATES = { accepted: "accepted", self_checked: "self-checked", unchecked: "unchecked", rejected: "rejected", failed: "failed", skipped: "skipped" };
const RANGES = { words: ["min_words", "max_words", 1], sizes: ["min_size", "max_size", 100], depths: ["min_depth", "max_depth", 1] };
const TYPING_PAUSE_MS = 200;
const SLOW_MS = 300; // a page or image that is there sooner needs no hint

const find = (selector) => document.querySelector(selector);

class RequestError extends Error {}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("`ureca view` does not respond; is it still running?");
  }
  if (response.ok) return response.json();
  throw new RequestError((await response.json().catch(() => ({}))).error ?? response.statusText);
}

// Result of the current filters, of which one page is shown.
class Results {
  constructor() {
    this.query = {};
    this.version = Date.now(); // a new one finds again
    this.total = 0;
    this.first = 0; // offset of the page
    this.regions = [];
    this.current = 0; // index within the page
    this.loading = null; // controller of the request for a page
    this.wanted = 0; // offset of the page that is being loaded, or of the shown one
    this.waiting = []; // actions that concern the page that is being loaded
    this.changed = () => {};
  }

  get region() {
    return this.regions[this.current] ?? null;
  }

  // Finds with other filters, and shows the first page.
  async search(query) {
    this.query = query;
    this.version++;
    this.waiting = [];
    try {
      await this.load(0, 0);
    } catch (error) {
      if (error.name !== "AbortError" || query !== this.query) throw error; // another page of the same result
    }
    const counts = await request(`api/histograms?${parameters({ query, version: this.version })}`);
    if (query === this.query) showHistograms(counts);
  }

  // Loads the page from an offset; index: the current region within it, -1 for the last one.
  async load(first, index) {
    this.loading?.abort();
    const controller = new AbortController();
    Object.assign(this, { loading: controller, wanted: first });
    find("#grid").setAttribute("aria-busy", "true");
    const slow = setTimeout(() => (find("#page").textContent = "loading …"), SLOW_MS);
    try {
      const asked = { query: this.query, version: this.version, offset: first, limit: PAGE_SIZE };
      const { total, regions } = await request(`api/regions?${parameters(asked)}`, { signal: controller.signal });
      controller.signal.throwIfAborted(); // a later request decides what is shown
      Object.assign(this, { total, first, regions, current: index < 0 ? regions.length - 1 : Math.min(index, Math.max(regions.length - 1, 0)) });
    } catch (error) {
      if (this.loading === controller) {
        Object.assign(this, { loading: null, wanted: this.first, waiting: [] });
        showPageNumber();
      }
      throw error;
    } finally {
      clearTimeout(slow);
    }
    this.loading = null;
    showPage();
    while (this.loading === null && this.waiting.length > 0) this.waiting.shift()();
  }

  // Runs an action about the current region: at once, or as soon as the page that is being loaded is shown.
  whenShown(act) {
    if (this.loading === null) act();
    else this.waiting.push(act);
  }

  // Moves to a neighbour of the current region, on another page if need be; returns false at an end of the result.
  async step(by) {
    const next = this.current + by;
    if (next >= 0 && next < this.regions.length) this.current = next;
    else if (next >= this.regions.length && this.first + this.regions.length < this.total) await this.load(this.first + PAGE_SIZE, 0);
    else if (next < 0 && this.first > 0) await this.load(this.first - PAGE_SIZE, -1);
    else return false;
    showCurrent();
    return true;
  }

  async turn(by) {
    const first = this.wanted + by * PAGE_SIZE;
    if (first >= 0 && first < this.total) await this.load(first, 0);
  }
}

const results = new Results();

function parameters(values) {
  return new URLSearchParams({ request: JSON.stringify(values) });
}

// Reads the filters of the form and the order as a query.
function queryOf(form) {
  const query = {};
  const states = [...form.querySelectorAll("#states input:checked")].map((box) => box.value);
  if (states.length > 0) query.states = states;
  for (const name of ["unique", "lookalikes", "corrected"]) if (form.elements[name].value) query[name] = form.elements[name].value === "true";
  if (form.elements.category.value) query.category = form.elements.category.value;
  for (const [least, most, scale] of Object.values(RANGES)) {
    for (const name of [least, most]) {
      const { value, validity } = form.elements[name];
      if (value !== "" && validity.valid) query[name] = scale === 1 ? Math.round(Number(value)) : Number(value) / scale;
    }
  }
  if (form.elements.text.value.trim()) query.text = form.elements.text.value.trim();
  const sort = find("#sort").value;
  return { ...query, sort: sort.replace("-", ""), descending: sort.startsWith("-") };
}

function report(error) {
  if (error.name === "AbortError") return;
  find("#alert").textContent = error.message;
  find("#alert").hidden = false;
}

async function search() {
  find("#alert").hidden = true;
  try {
    await results.search(queryOf(find("#filters")));
  } catch (error) {
    report(error);
  }
}

function badge(region) {
  const text = region.correction === null ? STATES[region.state] : { correct: "corrected", accept: "accepted ✓", reject: "rejected ✗" }[region.correction.action];
  return node("span", { class: `badge ${region.correction?.action === "correct" ? "corrected" : region.state}` }, text);
}

function cardOf(region, index) {
  const image = node("img", { src: `crop?number=${region.position}`, alt: "", loading: "lazy", width: 224, height: 224, draggable: "false" });
  image.addEventListener("error", () => image.replaceWith(node("span", { class: "missing" }, "no picture")));
  const card = node("li", { "data-index": index, class: "region-card" },
    image,
    node("p", { class: region.caption === null ? "text none" : "text" }, region.caption ?? "no caption"),
    node("p", { class: "facts" }, badge(region), region.is_repeated ? node("span", { class: "badge rejected" }, "repeated") : null,
      region.category === null ? null : node("span", { class: "badge" }, region.category)),
    node("p", { class: "facts name", title: region.image_id }, `${region.image_id} · ${region.region_id}`));
  card.addEventListener("click", () => {
    results.current = index;
    showCurrent();
  });
  card.addEventListener("dblclick", () => review.toggleImage(true));
  return card;
}

function showPage() {
  find("#grid").replaceChildren(...results.regions.map((region, index) => cardOf(region, index)));
  find("#grid").scrollTop = 0;
  const number = (value) => value.toLocaleString("en");
  find("#status").textContent = `${number(results.total)} region${results.total === 1 ? "" : "s"}`;
  showPageNumber();
  find("#previous").disabled = results.first === 0;
  find("#next").disabled = results.first + results.regions.length >= results.total;
  showCurrent(false);
}

function showPageNumber() {
  const number = (value) => value.toLocaleString("en");
  find("#grid").setAttribute("aria-busy", "false");
  find("#page").textContent = results.total === 0 ? "" : `${number(results.first / PAGE_SIZE + 1)} of ${number(Math.ceil(results.total / PAGE_SIZE))}`;
}

// Marks the current region, and shows its image where images are shown.
function showCurrent(scrolls = true) {
  for (const card of find("#grid").children) {
    const isCurrent = Number(card.dataset.index) === results.current;
    card.classList.toggle("current", isCurrent);
    card.toggleAttribute("aria-current", isCurrent);
    if (isCurrent && scrolls) card.scrollIntoView({ block: "nearest" });
  }
  results.changed();
}

// Redraws a region after a decision.
function updateRegion(region) {
  const index = results.regions.findIndex((other) => other.position === region.position);
  if (index < 0) return;
  results.regions[index] = region;
  const card = find(`#grid [data-index="${index}"]`);
  const made = cardOf(region, index);
  made.className = card.className;
  card.replaceWith(made);
}

function showHistograms(counts) {
  const number = (value) => value.toLocaleString("en");
  find("#status").textContent = `${number(counts.num_regions)} region${counts.num_regions === 1 ? "" : "s"} of ${number(counts.num_images)} image${counts.num_images === 1 ? "" : "s"}`;
  for (const [state, count] of Object.entries(counts.states)) find(`#states [data-state="${state}"]`).textContent = number(count);
  bars("words", counts.words, (value) => `${value}`);
  bars("sizes", counts.sizes, (value) => `${Math.round(value * 1e6) / 1e4}`);
  bars("depths", counts.depths.map((count, depth) => [depth, count]), (value) => `${value}`);
  const select = find('[name="category"]');
  const chosen = select.value;
  const names = new Set([...counts.categories.map(([name]) => name), ...(chosen ? [chosen] : [])]);
  find("#category-field").hidden &&= names.size === 0;
  select.replaceChildren(node("option", { value: "" }, "all"), ...[...names].map((name) => {
    const count = counts.categories.find(([other]) => other === name)?.[1] ?? 0;
    return node("option", { value: name }, `${name} (${number(count)})`);
  }));
  select.value = chosen;
}

// Draws a histogram whose bars set the range of its filter.
function bars(id, bins, label) {
  const most = Math.max(1, ...bins.map(([, count]) => count));
  find(`#${id}`).replaceChildren(...bins.map(([edge, count], index) => {
    const next = bins[index + 1]?.[0] ?? null;
    const text = `${label(edge)}${id === "depths" ? "" : next === null ? " and more" : ` to ${label(next)}`}: ${count.toLocaleString("en")}`;
    const bar = node("button", { type: "button", title: text, "aria-label": text }, node("span", {}));
    bar.firstChild.style.setProperty("height", `${count === 0 ? 0 : Math.max(4, (100 * count) / most)}%`);
    bar.addEventListener("click", () => {
      const form = find("#filters");
      const [least, greatest, scale] = RANGES[id];
      const end = id === "depths" ? edge : next === null ? "" : scale === 1 ? next - 1 : next * scale;
      form.elements[least].value = edge * scale;
      form.elements[greatest].value = end;
      search();
    });
    return bar;
  }));
}

find("#states").append(...Object.entries(STATES).map(([value, text]) => node("label", {},
  node("input", { type: "checkbox", name: "state", value }), ` ${text} `, node("span", { "data-state": value, class: "number" }))));
let typing = null;
find("#filters").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, TYPING_PAUSE_MS);
});
find("#filters").addEventListener("submit", (event) => event.preventDefault());
find("#filters").addEventListener("reset", () => setTimeout(search));
find("#sort").addEventListener("change", search);
find("#previous").addEventListener("click", () => results.turn(-1).catch(report));
find("#next").addEventListener("click", () => results.turn(1).catch(report));

async function start() {
  const narrow = matchMedia("(max-width: 56rem)");
  const open = () => (find("#filter-panel").open = !narrow.matches);
  narrow.addEventListener("change", open); // a wide window has no line by which closed filters could be opened
  open();
  try {
    const summary = await request("api/summary");
    document.title = `${summary.title} · URECA`;
    find("#title").textContent = summary.title;
    find("#decide").hidden = !summary.is_writable;
    const failed = summary.num_failed_images > 0 ? `, ${summary.num_failed_images.toLocaleString("en")} images failed` : "";
    find("#figures").textContent = `${summary.num_regions.toLocaleString("en")} regions of ${summary.num_images.toLocaleString("en")} images${failed}${summary.is_writable ? "" : "; not on this machine, so nothing can be corrected"}`;
  } catch (error) {
    report(error);
  }
  await search();
}
