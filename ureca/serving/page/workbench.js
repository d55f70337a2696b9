"use strict";

// The work on one image: its regions, their look-alikes and captions, as the service finds them.

const REGIONS_A_REQUEST = 32; // so that none takes long, and a failure costs little
const LOOKALIKES_TOO = 3; // captioned along with a region, most alike first, so that one sees what tells it apart

class Workbench {
  // told: status(text), failed(error, again), spoken(text), busy(bool), copy(text, button).
  constructor(service, file, panel, size, picture, told) {
    this.service = service;
    this.file = file;
    this.told = told;
    this.segmenter = null;
    this.running = new Set(); // controllers of requests that Stop and Escape end
    this.finding = null;
    this.viewer = new CaptionViewer(panel, { id: file.name, ...size }, picture, {
      caption: (ids) => this.caption(this.#withLookalikes(ids)),
      copyJson: (id) => this.told.copy(this.#json(id)),
      copyCurl: (id) => this.told.copy(this.#curl(id)),
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

  // Finds all regions, shows them, and then says which look alike.
  async propose() {
    await this.#run("Looking for regions …", () => this.propose(), async (signal) => {
      const answer = await this.service.regions(this.file, {}, signal);
      this.segmenter = answer.segmenter;
      this.#set(answer.regions.map((region) => this.#region(region)));
      this.#say();
      await this.#compare(signal);
    });
  }

  // Captions those of the regions that have none. Each is shown as soon as it is there.
  async caption(ids) {
    const wanted = ids.filter((id) => this.#of(id).caption === undefined && !this.#of(id).waiting);
    if (wanted.length === 0) return;
    this.#wait(wanted, true);
    await this.#run("Captioning …", () => this.caption(wanted), async (signal) => {
      for (let at = 0; at < wanted.length; at += REGIONS_A_REQUEST) {
        const part = wanted.slice(at, at + REGIONS_A_REQUEST).filter((id) => this.viewer.byId.has(id));
        const request = { regions: part.map((id) => ({ region_id: id, rle: this.#of(id).answer.rle })) };
        for await (const [event, data] of this.service.captions(this.file, request, signal)) {
          if (event === "caption") this.#captioned(data);
        }
      }
    });
    this.#wait(wanted, false);
    this.#say();
  }

  async captionEverything() {
    const largestFirst = this.regions.toSorted((a, b) => b.area_px - a.area_px).map((region) => region.id);
    const first = this.viewer.selected;
    await this.caption(first === null ? largestFirst : [first, ...largestFirst.filter((id) => id !== first)]);
    const missing = this.regions.filter((region) => region.caption === undefined).length;
    if (missing === 0) this.told.spoken(`All ${this.regions.length} regions are captioned.`);
  }

  // Makes the region that is being pointed at one of the image's, and captions it.
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

  // Ends what is running; says whether anything was.
  stop() {
    const wasBusy = this.isBusy;
    for (const controller of this.running) controller.abort();
    return wasBusy;
  }

  close() {
    this.stop();
    this.finding?.abort();
  }

  // What Escape means: first the region that is being pointed at, then what is running.
  cancel() {
    if (!this.pointing.isEmpty) {
      this.pointing.clear();
      return true;
    }
    return this.stop();
  }

  async #run(text, again, work) {
    const controller = new AbortController();
    this.running.add(controller);
    this.#say(text);
    this.told.busy(true);
    try {
      await work(controller.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.told.failed(error, again);
    } finally {
      this.running.delete(controller);
      this.told.busy(this.isBusy);
      if (!this.isBusy) this.#say();
    }
  }

  #of(id) {
    return this.viewer.byId.get(id);
  }

  #region(answer) {
    return {
      id: answer.region_id,
      parent: answer.parent_id,
      depth: answer.depth,
      area_px: answer.area_px,
      outline: outlineOf(answer.rle, answer.bbox_xywh),
      lookalikes: answer.lookalike_ids ?? [],
      waiting: false,
      answer,
    };
  }

  #set(regions) {
    this.viewer.setRegions(inTreeOrder(regions));
  }

  #remove(id) {
    this.#set(this.regions.filter((region) => region.id !== id));
    this.#say();
    this.viewer.stage.focus({ preventScroll: true });
  }

  // The place of all regions in the tree, and what they could be taken for.
  async #compare(signal) {
    if (this.regions.length === 0) return;
    const given = this.regions.map(({ id, answer }) => ({ region_id: id, rle: answer.rle }));
    const answer = await this.service.regions(this.file, { regions: given, lookalikes: true }, signal);
    for (const { region_id: id, parent_id, depth, lookalike_ids } of answer.regions) {
      const region = this.#of(id);
      if (region === undefined) continue; // removed meanwhile
      Object.assign(region, { parent: parent_id, depth, lookalikes: lookalike_ids });
      Object.assign(region.answer, { region_id: id, parent_id, depth, lookalike_ids });
    }
    this.#set(this.regions);
  }

  #withLookalikes(ids) {
    if (ids.length > 1) return ids;
    return [...ids, ...this.#of(ids[0]).lookalikes.filter((id) => this.viewer.byId.has(id)).slice(0, LOOKALIKES_TOO)];
  }

  #captioned({ region_id: id, caption, num_tokens, finish_reason }) {
    const region = this.#of(id);
    if (region === undefined) return;
    Object.assign(region, { caption, waiting: false });
    Object.assign(region.answer, { caption, num_tokens, finish_reason });
    this.viewer.refresh(id);
    this.#say();
    if (id === this.viewer.selected) this.told.spoken(`Region ${id}: ${caption ?? "the model wrote nothing"}`);
  }

  #wait(ids, isWaiting) {
    for (const id of ids) {
      const region = this.#of(id);
      if (region === undefined || region.waiting === isWaiting) continue;
      region.waiting = isWaiting;
      this.viewer.refresh(id);
    }
  }

  #say(text = null) {
    const numRegions = this.regions.length;
    const waiting = this.regions.filter((region) => region.waiting).length;
    const captioned = this.regions.filter((region) => region.caption !== undefined).length;
    const found = `${numRegions} region${numRegions === 1 ? "" : "s"}, ${captioned} captioned`;
    if (waiting > 0) this.told.status(`Captioning: ${captioned} of ${captioned + waiting}`, captioned / (captioned + waiting));
    else this.told.status(text ?? (this.segmenter === null ? "" : found), null);
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
      const answer = await this.service.regions(this.file, { regions: [promptOf(draft.points, draft.box)] }, controller.signal);
      current.region = this.#region(answer.regions[0]);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 422) current.problem = error.message;
      else this.told.failed(error, () => this.#drafted(draft));
    }
    current.waiting = false;
    if (this.viewer.draft === current) this.viewer.draw();
  }

  #json(id) {
    if (id !== null) return JSON.stringify(this.#of(id).answer, null, 2);
    const { width, height } = this.viewer.image;
    const regions = this.regions.map((region) => region.answer);
    return JSON.stringify({ image: { height, width }, segmenter: this.segmenter, regions }, null, 2);
  }

  #curl(id) {
    const request = id === null ? { lookalikes: true } : { regions: [this.#of(id).prompt ?? { rle: this.#of(id).answer.rle }] };
    return curlOf(new URL("v1/captions", document.baseURI).href, this.file.name, request, this.service.token !== null);
  }
}

function promptOf(points, box) {
  return { ...(box ? { bbox_xywh: box } : {}), ...(points.length > 0 ? { points } : {}) };
}

// Each parent right before its subtree, siblings from the largest to the smallest; without its parent, a region counts
// as top level.
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

// A command for a shell that asks the service the same. The token stays out of it: it is read from the environment.
function curlOf(url, fileName, request, hasToken) {
  const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
  const file = fileName.replace(/["\\]/g, String.raw`\$&`);
  const token = hasToken ? ' -H "Authorization: Bearer $URECA_TOKEN"' : "";
  return `curl ${quoted(url)}${token} -F ${quoted(`image=@"${file}"`)} --form-string ${quoted(`request=${JSON.stringify(request)}`)}`;
}
