"use strict";

// State of one image: its regions, look-alikes and captions, and the requests for them.

const REGIONS_PER_REQUEST = 32; // bounds the duration of a request
const NUM_CAPTIONED_LOOKALIKES = 3; // captioned together with a region, most similar first, to compare them

class Workbench {
  // origin: URL of an example, "pasted" for an image without a file, or null. options: the question and the settings.
  // callbacks: status(text, progress), failed(error, retry), spoken(text), busy(bool), copy(text), edit(rle), drafted().
  constructor(service, { file, origin }, panel, size, picture, options, callbacks) {
    this.service = service;
    this.file = file;
    this.origin = origin;
    this.options = options;
    this.callbacks = callbacks;
    this.segmenter = null;
    this.running = new Set(); // controllers of the requests that Stop and Escape cancel
    this.finding = null;
    this.partials = new Map(); // first words by region id, not shown yet
    this.viewer = new CaptionViewer(panel, { id: file.name, ...size }, picture, {
      caption: (ids) => this.caption(this.#withLookalikes(ids)),
      captionAgain: (id) => this.caption([id], true),
      options: () => JSON.stringify(this.options.values()),
      edit: (id) => this.callbacks.edit(this.#of(id).response.rle),
      cutOut: (id) => this.#cutOut(id),
      save: (format) => this.#save(format),
      copyJson: (id) => this.callbacks.copy(this.#json(id)),
      copyCurl: (id) => this.callbacks.copy(this.#curl(id)),
      remove: (id) => this.#remove(id),
      commit: () => this.commit(),
      discard: () => this.pointing.clear(),
    });
    this.pointing = new Pointing(this.viewer, (draft) => this.#drafted(draft));
    this.zoom = new Zoom(this.viewer, () => this.pointing.mode === "select", () => this.pointing.interrupt());
    this.viewer.zoom = this.zoom;
  }

  get regions() {
    return this.viewer.regions;
  }

  get isBusy() {
    return this.running.size > 0;
  }

  // Segments the image, shows its regions, and then finds their look-alikes.
  async segment() {
    await this.#run("Segmenting …", () => this.segment(), async (signal) => {
      const response = await this.service.regions(this.file, {}, signal);
      this.segmenter = response.segmenter;
      this.#set(response.regions.map((region) => this.#region(region)));
      this.#updateStatus();
      await this.#compare(signal);
    });
  }

  // Captions the regions without a caption, or all of them again; each caption is shown word by word. The failure of a
  // region is shown at the region, and the others are captioned all the same.
  async caption(ids, again = false) {
    const options = this.options.read();
    const wanted = ids.filter((id) => (again || this.#of(id).caption === undefined) && !this.#of(id).waiting);
    if (wanted.length === 0 || options === null) return;
    this.#wait(wanted, true);
    await this.#run("Captioning …", () => this.caption(wanted, again), async (signal) => {
      const parts = [];
      for (let at = 0; at < wanted.length; at += REGIONS_PER_REQUEST) parts.push(wanted.slice(at, at + REGIONS_PER_REQUEST));
      while (parts.length > 0) {
        const part = parts.shift().filter((id) => this.viewer.byId.has(id));
        if (part.length === 0) continue;
        try {
          await this.#captionPart(part, options, signal);
        } catch (error) {
          if (!error.isOfRegions) throw error;
          const unfinished = part.filter((id) => this.#of(id)?.waiting);
          const half = Math.ceil(unfinished.length / 2);
          // One region fails the whole request: halves find the one that fails alone.
          if (unfinished.length > 1) parts.unshift(unfinished.slice(0, half), unfinished.slice(half));
          else this.#failed(unfinished, error);
        }
      }
    });
    this.#wait(wanted, false);
    this.#updateStatus();
  }

  async #captionPart(ids, options, signal) {
    const request = { ...options, regions: ids.map((id) => ({ region_id: id, rle: this.#of(id).response.rle })) };
    for await (const [event, data] of this.service.captions(this.file, request, signal)) {
      if (event === "partial") this.#partial(data);
      if (event === "caption") this.#captioned(data, options);
    }
  }

  // Captions every region without a caption, and those captioned with another question or other settings again.
  async captionEverything() {
    const options = JSON.stringify(this.options.values());
    const largestFirst = this.regions.toSorted((a, b) => b.area_px - a.area_px).filter((region) => region.options !== options).map((region) => region.id);
    const first = this.viewer.selected;
    await this.caption(largestFirst.includes(first) ? [first, ...largestFirst.filter((id) => id !== first)] : largestFirst, true);
    const missing = this.regions.filter((region) => region.caption === undefined).length;
    if (missing === 0) this.callbacks.spoken(`All ${this.regions.length} regions are captioned.`);
  }

  // Adds the drafted region to the image, and captions it.
  async commit() {
    const { region } = this.viewer.draft ?? {};
    if (!region) return;
    const prompt = promptOf(this.pointing.draft);
    const same = this.regions.find((other) => other.outline === region.outline);
    this.pointing.clear();
    if (same === undefined) {
      region.id = 1 + Math.max(-1, ...this.regions.map((other) => other.id));
      region.prompt = prompt;
      this.#set([...this.regions, region]);
    }
    const id = same?.id ?? region.id;
    this.viewer.select(id);
    if (same === undefined) {
      await this.#run("Comparing …", () => this.caption([id]), (signal) => this.#compare(signal));
    }
    if (this.viewer.byId.has(id)) await this.caption(this.#withLookalikes([id]));
  }

  // Cancels the running requests; returns true if there were any.
  stop() {
    const wasBusy = this.isBusy;
    for (const controller of this.running) controller.abort();
    return wasBusy;
  }

  close() {
    this.stop();
    this.finding?.abort();
  }

  // Escape: discards the drafted region, or cancels the running requests.
  cancel() {
    if (!this.pointing.isEmpty) {
      this.pointing.clear();
      return true;
    }
    return this.stop();
  }

  async #run(text, retry, work) {
    const controller = new AbortController();
    this.running.add(controller);
    this.#updateStatus(text);
    this.callbacks.busy(true);
    try {
      await work(controller.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.callbacks.failed(error, retry);
    } finally {
      this.running.delete(controller);
      this.callbacks.busy(this.isBusy);
      if (!this.isBusy) this.#updateStatus();
    }
  }

  #of(id) {
    return this.viewer.byId.get(id);
  }

  #region(response) {
    return {
      id: response.region_id,
      parent: response.parent_id,
      depth: response.depth,
      area_px: response.area_px,
      outline: outlineOf(response.rle, response.bbox_xywh),
      lookalikes: response.lookalike_ids ?? [],
      waiting: false,
      problem: null,
      response,
    };
  }

  #set(regions) {
    this.viewer.setRegions(inTreeOrder(regions));
  }

  #remove(id) {
    this.#set(this.regions.filter((region) => region.id !== id));
    this.#updateStatus();
    this.viewer.stage.focus({ preventScroll: true });
  }

  // Updates the tree and the look-alikes of all regions; of more than a request may have, those of the new and the largest.
  async #compare(signal) {
    if (this.regions.length === 0) return;
    const isKnown = ({ response }) => response.lookalike_ids !== null;
    const compared = this.regions.toSorted((a, b) => isKnown(a) - isKnown(b) || b.area_px - a.area_px).slice(0, this.service.maxRegions);
    const given = compared.map(({ id, response }) => ({ region_id: id, rle: response.rle }));
    const response = await this.service.regions(this.file, { regions: given, lookalikes: true }, signal);
    for (const { region_id: id, parent_id, depth, lookalike_ids } of response.regions) {
      const region = this.#of(id);
      if (region === undefined) continue; // removed in the meantime
      Object.assign(region, { parent: parent_id, depth, lookalikes: lookalike_ids });
      Object.assign(region.response, { region_id: id, parent_id, depth, lookalike_ids });
    }
    this.#set(this.regions);
  }

  #withLookalikes(ids) {
    if (ids.length > 1) return ids;
    return [...ids, ...this.#of(ids[0]).lookalikes.filter((id) => this.viewer.byId.has(id)).slice(0, NUM_CAPTIONED_LOOKALIKES)];
  }

  // Shows the words of unfinished captions, at most once a frame.
  #partial({ region_id: id, text }) {
    if (this.partials.size === 0) {
      requestAnimationFrame(() => {
        for (const [other, words] of this.partials) if (this.#of(other)?.waiting) this.viewer.showPartial(other, words);
        this.partials.clear();
      });
    }
    this.partials.set(id, text);
    const region = this.#of(id);
    if (region !== undefined) region.partial = text;
  }

  #failed(ids, error) {
    for (const id of ids) {
      Object.assign(this.#of(id), { problem: error, waiting: false });
      this.viewer.refresh(id);
      if (id === this.viewer.selected) this.callbacks.spoken(`Region ${id} failed: ${error.message}`);
    }
    this.#updateStatus();
  }

  #captioned({ region_id: id, caption, num_tokens, finish_reason }, options) {
    const region = this.#of(id);
    if (region === undefined) return;
    Object.assign(region, { caption, waiting: false, options: JSON.stringify(options), question: options.question });
    Object.assign(region.response, { caption, num_tokens, finish_reason }, options.question ? { question: options.question } : {});
    this.viewer.refresh(id);
    this.#updateStatus();
    if (id === this.viewer.selected) this.callbacks.spoken(`Region ${id}: ${caption ?? "the model generated no text"}`);
  }

  #wait(ids, isWaiting) {
    for (const id of ids) {
      const region = this.#of(id);
      if (region === undefined || region.waiting === isWaiting) continue;
      region.waiting = isWaiting;
      region.partial = "";
      if (isWaiting) region.problem = null;
      this.viewer.refresh(id);
    }
  }

  #updateStatus(text = null) {
    const numRegions = this.regions.length;
    const waiting = this.regions.filter((region) => region.waiting).length;
    const captioned = this.regions.filter((region) => region.caption !== undefined && !region.waiting).length;
    const failed = this.regions.filter((region) => region.problem !== null).length;
    const found = `${numRegions} region${numRegions === 1 ? "" : "s"}, ${captioned} captioned${failed ? `, ${failed} failed` : ""}`;
    if (waiting > 0) this.callbacks.status(`Captioning: ${captioned} of ${captioned + waiting}`, captioned / (captioned + waiting));
    else this.callbacks.status(text ?? (this.segmenter === null ? "" : found), null);
  }

  async #drafted(draft) {
    this.finding?.abort();
    this.callbacks.drafted();
    this.viewer.draft = draft && { ...draft, region: null, waiting: false, problem: null };
    this.viewer.select(null);
    this.viewer.draw();
    const prompt = draft && promptOf(draft);
    if (prompt === null) return;
    const current = this.viewer.draft;
    const controller = new AbortController();
    this.finding = controller;
    current.waiting = true;
    this.viewer.draw();
    try {
      const response = await this.service.regions(this.file, { regions: [prompt] }, controller.signal);
      current.region = this.#region(response.regions[0]);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 422) current.problem = explained(error);
      else this.callbacks.failed(error, () => this.#drafted(draft));
    }
    current.waiting = false;
    if (this.viewer.draft === current) this.viewer.draw();
  }

  #json(id) {
    if (id !== null) return JSON.stringify(this.#of(id).response, null, 2);
    const { width, height } = this.viewer.image;
    const regions = this.regions.map((region) => region.response);
    return JSON.stringify({ image: { height, width }, segmenter: this.segmenter, regions }, null, 2);
  }

  #curl(id) {
    const regions = id === null ? { lookalikes: true } : { regions: [this.#of(id).prompt ?? { rle: this.#of(id).response.rle }] };
    const request = { ...this.options.values(), ...regions };
    return curlOf(new URL("v1/captions", document.baseURI).href, this.file.name, this.origin, request, this.service.token !== null);
  }

  get #stem() {
    return this.file.name.replace(/\.[^.]*$/, "");
  }

  async #savePicture(name, draw) {
    try {
      save(name, await draw());
    } catch (error) {
      this.callbacks.failed(error, null);
    }
  }

  #cutOut(id) {
    const { source, image } = this.viewer;
    this.#savePicture(`${this.#stem}-region-${id}.png`, () => cutOut(source, image, this.#of(id).response));
  }

  #save(format) {
    const { viewer } = this;
    if (format === "png") {
      const colourOf = (region) => getComputedStyle(viewer.paths.get(region.id)).getPropertyValue("--depth-colour");
      this.#savePicture(`${this.#stem}-regions.png`, () => annotatedPicture(viewer.source, viewer.image, this.regions, colourOf));
      return;
    }
    const description = `Regions of ${this.file.name}, segmenter ${this.segmenter}`;
    const text = format === "coco" ? JSON.stringify(cocoOf(viewer.image, this.regions, description)) : this.#json(null);
    save(`${this.#stem}-${format === "coco" ? "coco" : "regions"}.json`, new Blob([text], { type: "application/json" }));
  }
}

// Sorts regions in depth-first order, siblings from largest to smallest; a region whose parent is missing is top level.
function inTreeOrder(regions) {
  const ids = new Set(regions.map((region) => region.id));
  const children = new Map();
  for (const region of regions.toSorted((a, b) => b.area_px - a.area_px)) {
    const parent = ids.has(region.parent) ? region.parent : -1;
    children.set(parent, [...(children.get(parent) ?? []), region]);
  }
  const below = (parent) => (children.get(parent) ?? []).flatMap((region) => [region, ...below(region.id)]);
  return below(-1);
}
