"use strict";

// Decisions about captions, by keyboard or pointer, and the image of the current region.

const REASONS = ["false: not what the region shows", "not unique: fits another region, too", "wrong attribute, such as the colour", "wrong place or relation", "about another part of the image", "bad mask"];
const KEYS = [
  ["j, ↓", "next region"], ["k, ↑", "previous region"], ["a", "accept, and go on"], ["r", "reject, with a reason; 1 to 6 choose it"],
  ["R", "reject at once, and go on"], ["e", "correct the caption"], ["u", "take the decision back"], ["Enter", "show the image; Escape: back to the grid"],
  ["n, p", "next, previous page"], ["/", "search"], ["?", "this list"],
];

// The image of the report, whose regions know their places in the index.
class ReviewPanel extends Panel {
  choose(id) {
    this.select(id);
  }

  // Shows a region as it is after a decision.
  update(region) {
    const own = this.byId.get(region.region_id);
    if (own === undefined) return;
    Object.assign(own, { caption: region.caption, verdict: ["failed", "skipped"].includes(region.state) ? own.verdict : region.state, status: region.caption === null ? own.status : "ok" });
    own.verdict_reason = region.correction === null ? own.verdict_reason : region.correction.reason ?? `${region.correction.action}ed by a person`;
    this.items.get(own.id).replaceChildren(...this.itemParts(own).filter((part) => part !== null));
    this.draw();
  }
}

class Review {
  constructor() {
    this.panel = null;
    this.image = null; // row of the shown image
    this.loading = new AbortController(); // of the image that is being loaded, or of the last one
    this.showsImage = false;
    this.pending = Promise.resolve(); // decisions are sent one after the other
    results.changed = () => this.showImage();
  }

  // The region that keys are about: the one selected in the image, else the current one of the results.
  get position() {
    const selected = this.showsImage && this.panel !== null ? this.panel.byId.get(this.panel.selected) : undefined;
    return selected?.position ?? results.region?.position ?? null;
  }

  toggleImage(shows) {
    this.showsImage = shows && results.region !== null;
    find("#grid").hidden = this.showsImage;
    find("#panel").hidden = !this.showsImage;
    find("#mode").textContent = this.showsImage ? "Show grid" : "Show image";
    this.showImage();
    if (!this.showsImage) showCurrent();
  }

  async showImage() {
    const { region } = results;
    if (!this.showsImage || region === null) return;
    if (this.image === region.image) {
      this.panel?.select(region.region_id); // an image that is being loaded selects it when it is there
      return;
    }
    this.loading.abort();
    const { signal } = (this.loading = new AbortController());
    this.image = region.image;
    this.panel = null; // keys are about the current region, not about one of the image that is still shown
    const element = find("#panel");
    const hint = node("p", { class: "loading" }, `Loading ${region.image_id} …`);
    const slow = setTimeout(() => {
      if (this.panel === null) element.replaceChildren(hint);
      else this.panel.plane.append(hint);
      find("#spoken").textContent = hint.textContent;
    }, SLOW_MS);
    element.setAttribute("aria-busy", "true");
    try {
      const image = await request(`api/image?number=${region.image}`, { signal });
      signal.throwIfAborted();
      const isSlow = hint.isConnected;
      element.replaceChildren();
      this.panel = new ReviewPanel(element, image, `image?number=${region.image}`);
      if (isSlow) this.panel.plane.append(hint);
      if (results.region?.image === region.image) this.panel.select(results.region.region_id);
      const picture = element.querySelector(".stage img");
      await new Promise((resolve) => {
        picture.addEventListener("load", resolve);
        picture.addEventListener("error", () => {
          picture.replaceWith(node("p", { class: "missing" }, "The picture cannot be read."));
          resolve();
        });
      });
    } catch (error) {
      if (signal.aborted) return;
      this.image = null;
      element.replaceChildren();
      report(error);
    } finally {
      clearTimeout(slow);
      hint.remove();
      if (!signal.aborted) element.setAttribute("aria-busy", "false");
    }
  }

  // Sends a decision about the region; goes on to the next one at once, without waiting.
  decide(action, fields = {}, goesOn = true) {
    const { position } = this;
    if (position === null) return;
    this.pending = this.pending.then(async () => {
      try {
        const body = JSON.stringify({ position, action, ...fields });
        const region = await request("api/corrections", { method: "POST", body, headers: { "Content-Type": "application/json" } });
        updateRegion(region);
        if (this.panel !== null && region.image === this.image) this.panel.update(region);
        find("#spoken").textContent = `Region ${region.region_id}: ${region.correction?.action ?? "decision taken back"}`;
      } catch (error) {
        report(error);
      }
    });
    if (goesOn && position === results.region?.position) this.step(1);
  }

  step(by) {
    results.step(by).catch(report);
  }

  askForReason() {
    if (this.position === null) return;
    find('#reject [name="reason"]').value = "";
    find("#reject").showModal();
    find("#reasons button").focus();
  }

  askForCaption() {
    const { position } = this;
    if (position === null) return;
    const known = results.regions.find((region) => region.position === position) ?? [...this.panel.byId.values()].find((region) => region.position === position);
    find('#edit [name="caption"]').value = known.caption ?? "";
    find("#edit").showModal();
    find('#edit [name="caption"]').select();
  }

  // Handles a key outside of text fields and dialogs; returns true if it has a function.
  key(event) {
    const acts = {
      j: () => this.step(1),
      ArrowDown: () => this.step(1),
      k: () => this.step(-1),
      ArrowUp: () => this.step(-1),
      a: () => this.decide("accept"),
      r: () => this.askForReason(),
      R: () => this.decide("reject"),
      e: () => this.askForCaption(),
      u: () => this.decide("restore", {}, false),
      n: () => results.turn(1).catch(report),
      p: () => results.turn(-1).catch(report),
      Enter: () => this.toggleImage(!this.showsImage),
      Escape: () => this.toggleImage(false),
      "/": () => find('[name="text"]').focus(),
      "?": () => find("#help").showModal(),
    };
    if (!(event.key in acts)) return false;
    if (["n", "p", "/", "?", "Escape"].includes(event.key)) acts[event.key]();
    else results.whenShown(acts[event.key]);
    return true;
  }
}

const review = new Review();

find("#keys").append(...KEYS.flatMap(([keys, text]) => [node("dt", {}, keys), node("dd", {}, text)]));
find("#reasons").append(...REASONS.map((reason) => {
  const button = node("button", { type: "button" }, reason);
  button.addEventListener("click", () => {
    find("#reject").close();
    review.decide("reject", { reason });
  });
  return node("li", {}, button);
}));
find("#reject form").addEventListener("submit", () => review.decide("reject", { reason: find('#reject [name="reason"]').value.trim() || null }));
find("#edit form").addEventListener("submit", () => review.decide("correct", { caption: find('#edit [name="caption"]').value }));
find("#edit textarea").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find("#edit form").requestSubmit();
});
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
find("#help-button").addEventListener("click", () => find("#help").showModal());
for (const button of document.querySelectorAll("#decide button")) {
  button.addEventListener("click", (event) => {
    if (event.detail > 0) button.blur(); // the keys are about the regions again
    review.key({ key: button.dataset.key });
  });
}
find("#mode").addEventListener("click", () => review.toggleImage(!review.showsImage));

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (find("#reject").open) {
    const choice = event.target.tagName === "INPUT" ? undefined : find("#reasons").children[Number(event.key) - 1];
    if (choice === undefined) return;
    choice.firstChild.click();
    event.preventDefault();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  if (event.target.matches("input:not([type=checkbox]), textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "Enter" && event.target.closest("button, a")) return;
  if (event.key.startsWith("Arrow") && event.target.closest(".panel")) return; // through the regions of the image
  if (review.key(event)) {
    event.preventDefault();
    event.stopPropagation();
  }
}, true);

start();
