"use strict";

// State of one image: its regions, look-alikes and captions, and the requests for them.

const REGIONS_PER_REQUEST = 32; // bounds the duration of a request and the cost of its failure
const NUM_CAPTIONED_LOOKALIKES = 3; // captioned together with a region, most similar first, to compare them

class Workbench {
  // callbacks: status(text, progress), failed(error, retry), spoken(text), busy(bool), copy(text).
  constructor(service, file, panel, size, picture, callbacks) {
    this.service = service;
    this.file = file;
    this.callbacks = callbacks;
    this.segmenter = null;
    this.running = new Set(); // controllers of the requests that Stop and Escape cancel
    this.finding = null;
    this.viewer = new CaptionViewer(panel, { id: file.name, ...size }, picture, {
      caption: (ids) => this.caption(this.#withLookalikes(ids)),
      copyJson: (id) => this.callbacks.copy(this.#json(id)),
      copyCurl: (id) => this.callbacks.copy(this.#curl(id)),
      remove: (id) => this.#remove(id),
      commit: () => this.commit(),
      undo: () => this.pointing.undo(),
      discard: () => this.pointing.clear(),
    });
    this.pointing = new Pointing(this.viewer, (draft) => this.#drafted(draft));
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

  // Captions the regions without a caption; each caption is shown as soon as it is finished.
  async caption(ids) {
    const wanted = ids.filter((id) => this.#of(id).caption === undefined && !this.#of(id).waiting);
    if (wanted.length === 0) return;
    this.#wait(wanted, true);
    await this.#run("Captioning …", () => this.caption(wanted), async (signal) => {
      for (let at = 0; at < wanted.length; at += REGIONS_PER_REQUEST) {
        const part = wanted.slice(at, at + REGIONS_PER_REQUEST).filter((id) => this.viewer.byId.has(id));
        const request = { regions: part.map((id) => ({ region_id: id, rle: this.#of(id).response.rle })) };
        for await (const [event, data] of this.service.captions(this.file, request, signal)) {
          if (event === "caption") this.#captioned(data);
        }
      }
    });
    this.#wait(wanted, false);
    this.#updateStatus();
  }

  async captionEverything() {
    const largestFirst = this.regions.toSorted((a, b) => b.area_px - a.area_px).map((region) => region.id);
    const first = this.viewer.selected;
    await this.caption(first === null ? largestFirst : [first, ...largestFirst.filter((id) => id !== first)]);
    const missing = this.regions.filter((region) => region.caption === undefined).length;
    if (missing === 0) this.callbacks.spoken(`All ${this.regions.length} regions are captioned.`);
  }

  // Adds the drafted region to the image, and captions it.
  async commit() {
    const { region, points, box } = this.viewer.draft ?? {};
    if (!region) return;
    const same = this.regions.find((other) => other.outline === region.outline);
    this.pointing.clear();
    if (same === undefined) {
      region.id = 1 + Math.max(-1, ...this.regions.map((other) => other.id));
      region.prompt = promptOf(points, box);
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

  // Updates the tree and the look-alikes of all regions.
  async #compare(signal) {
    if (this.regions.length === 0) return;
    const given = this.regions.map(({ id, response }) => ({ region_id: id, rle: response.rle }));
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

  #captioned({ region_id: id, caption, num_tokens, finish_reason }) {
    const region = this.#of(id);
    if (region === undefined) return;
    Object.assign(region, { caption, waiting: false });
    Object.assign(region.response, { caption, num_tokens, finish_reason });
    this.viewer.refresh(id);
    this.#updateStatus();
    if (id === this.viewer.selected) this.callbacks.spoken(`Region ${id}: ${caption ?? "the model generated no text"}`);
  }

  #wait(ids, isWaiting) {
    for (const id of ids) {
      const region = this.#of(id);
      if (region === undefined || region.waiting === isWaiting) continue;
      region.waiting = isWaiting;
      this.viewer.refresh(id);
    }
  }

  #updateStatus(text = null) {
    const numRegions = this.regions.length;
    const waiting = this.regions.filter((region) => region.waiting).length;
    const captioned = this.regions.filter((region) => region.caption !== undefined).length;
    const found = `${numRegions} region${numRegions === 1 ? "" : "s"}, ${captioned} captioned`;
    if (waiting > 0) this.callbacks.status(`Captioning: ${captioned} of ${captioned + waiting}`, captioned / (captioned + waiting));
    else this.callbacks.status(text ?? (this.segmenter === null ? "" : found), null);
  }

  async #drafted(draft) {
    this.finding?.abort();
    this.viewer.draft = draft && { ...draft, region: null, waiting: false, problem: null };
    this.viewer.select(null);
    this.viewer.draw();
    if (draft === null || !(draft.box || draft.points.some((point) => point.label === 1))) return;
    const current = this.viewer.draft;
    const controller = new AbortController();
    this.finding = controller;
    current.waiting = true;
    this.viewer.draw();
    try {
      const response = await this.service.regions(this.file, { regions: [promptOf(draft.points, draft.box)] }, controller.signal);
      current.region = this.#region(response.regions[0]);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 422) current.problem = error.message;
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
    const request = id === null ? { lookalikes: true } : { regions: [this.#of(id).prompt ?? { rle: this.#of(id).response.rle }] };
    return curlOf(new URL("v1/captions", document.baseURI).href, this.file.name, request, this.service.token !== null);
  }
}

function promptOf(points, box) {
  return { ...(box ? { bbox_xywh: box } : {}), ...(points.length > 0 ? { points } : {}) };
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

// Formats a request as a shell command. It reads the token from the environment and does not contain it.
function curlOf(url, fileName, request, hasToken) {
  const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
  const file = fileName.replace(/["\\]/g, String.raw`\$&`);
  const token = hasToken ? ' -H "Authorization: Bearer $URECA_TOKEN"' : "";
  return `curl ${quoted(url)}${token} -F ${quoted(`image=@"${file}"`)} --form-string ${quoted(`request=${JSON.stringify(request)}`)}`;
}
