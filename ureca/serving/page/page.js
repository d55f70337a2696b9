"use strict";

// The page: selection of an image, tools, error messages and the token.

const find = (selector) => document.querySelector(selector);
const service = new Service(askForToken);
const options = new Options(find("#options"));
const BRUSH_STEP = 8; // of the slider, per key press
let workbench = null;

const callbacks = {
  status(text, done) {
    find("#status").replaceChildren(...(done === null ? [] : [node("progress", { value: done, "aria-hidden": "true" })]), text);
  },
  failed: showProblem,
  spoken(text) { find("#spoken").textContent = text; },
  drafted: updateTools,
  edit(rle) {
    useMode("brush");
    workbench.pointing.begin(rle);
    workbench.viewer.stage.focus({ preventScroll: true });
  },
  busy(isBusy) {
    find("#stop").hidden = !isBusy;
    find("#everything").hidden = isBusy;
  },
  async copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      find("#notice").textContent = "Copied.";
    } catch {
      // Browsers provide no clipboard without a secure connection.
      showText(text);
    }
  },
};

// Shows an image, and segments it; origin: as in Workbench.
async function openImage(file, origin = null) {
  const picture = node("img", { alt: "", draggable: "false", src: URL.createObjectURL(file) });
  hideAlert();
  try {
    await picture.decode();
  } catch {
    showProblem(new Error(`${file.name || "this"} is not an image that this browser supports`), null);
    return;
  }
  leave();
  const named = file.name ? file : new File([file], "image.png", { type: file.type });
  const size = { width: picture.naturalWidth, height: picture.naturalHeight };
  find("#start").hidden = true;
  find("#work").hidden = false;
  find("#panel").replaceChildren();
  workbench = new Workbench(service, { file: named, origin }, find("#panel"), size, picture, options, callbacks);
  useMode("select");
  workbench.viewer.draw();
  workbench.viewer.stage.focus({ preventScroll: true });
  scrollTo({ top: 0 });
  await workbench.segment();
}

function leave() {
  workbench?.close();
  if (workbench) URL.revokeObjectURL(workbench.viewer.source.src);
  workbench = null;
}

function startAgain() {
  leave();
  hideAlert();
  find("#work").hidden = true;
  find("#start").hidden = false;
  find("#choose").focus();
}

async function openExample(path) {
  try {
    const response = await fetch(path);
    if (!response.ok) throw await ApiError.fromResponse(response);
    await openImage(new File([await response.blob()], path.split("/").pop(), { type: response.headers.get("Content-Type") ?? "" }), response.url);
  } catch (error) {
    showProblem(error, () => openExample(path));
  }
}

function openFirst(files, origin = null) {
  const image = [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
  if (image) openImage(image, origin);
}

function useMode(mode) {
  find(`#modes [value="${mode}"]`).checked = true;
  workbench.pointing.use(mode);
  updateTools();
}

// Shows the tools of the current mode.
function updateTools() {
  if (workbench === null) return;
  const { pointing } = workbench;
  find("#sides").hidden = pointing.mode !== "point";
  find("#brush").hidden = !pointing.isPainting;
  find("#history").hidden = pointing.mode === "select";
  find("#undo").disabled = !pointing.canUndo;
  find("#redo").disabled = !pointing.canRedo;
}

// The slider is logarithmic: from a hundredth to a third of the image's longer side.
function useBrush(position) {
  find("#diameter").value = position;
  workbench.pointing.diameter = 0.01 * 30 ** (find("#diameter").value / 100);
}

// Shows an error; retry: function of the button "Try again", or null for no button.
function showProblem(error, retry) {
  const field = error.param ? node("code", {}, error.param) : null;
  const parts = [node("p", {}, node("b", {}, headline(error)), " ", field, field ? ": " : null, details(error))];
  const wait = error.retryAfter ?? 0;
  if (retry !== null && error.type !== "invalid_request_error") {
    const button = node("button", { type: "button" }, "Try again");
    button.addEventListener("click", () => { hideAlert(); retry(); });
    countDown(button, wait);
    parts.push(button);
  }
  const close = node("button", { type: "button", "aria-label": "Close this message" }, "×");
  close.addEventListener("click", hideAlert);
  find("#alert").replaceChildren(...parts, close);
  find("#alert").hidden = false;
}

function countDown(button, seconds) {
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
  if (seconds > 0) setTimeout(() => countDown(button, seconds - 1), 1000);
}

function hideAlert() {
  find("#alert").hidden = true;
}

function showText(text) {
  const area = node("textarea", { readonly: "", rows: "6", "aria-label": "Text to copy" });
  area.value = text;
  const close = node("button", { type: "button", "aria-label": "Close this message" }, "×");
  close.addEventListener("click", hideAlert);
  find("#alert").replaceChildren(node("p", {}, "Copy this:"), area, close);
  find("#alert").hidden = false;
  area.select();
}

// Shows the form for the token; resolves to the token, or to null if cancelled. rejected: the previous token, or null.
function askForToken(rejected) {
  const form = find("#token");
  const field = find("#token-field");
  form.hidden = false;
  const say = (text) => { find("#token label").textContent = text; };
  say(rejected === null ? "This service requires a token, which its operator gives out" : "The service does not accept this token. Is it complete, and still valid?");
  field.value = "";
  field.focus();
  return new Promise((resolve) => {
    const finish = (token) => {
      form.hidden = true;
      field.value = "";
      form.onsubmit = find("#token-cancel").onclick = null;
      resolve(token);
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      const token = field.value.trim().replace(/^Bearer\s+/i, "");
      if (/^[!-~]+$/.test(token)) finish(token);
      else say("A token consists of letters, digits and signs, without spaces. Was something else copied?");
    };
    find("#token-cancel").onclick = () => finish(null);
  });
}

find("#choose").addEventListener("click", () => find("#file").click());
find("#file").addEventListener("change", (event) => {
  openFirst(event.target.files);
  event.target.value = "";
});
for (const button of document.querySelectorAll("[data-example]")) button.addEventListener("click", () => openExample(button.dataset.example));
find("#another").addEventListener("click", startAgain);
find("#everything").addEventListener("click", () => workbench.captionEverything());
find("#stop").addEventListener("click", () => workbench.stop());
find("#modes").addEventListener("change", (event) => useMode(event.target.value));
find("#undo").addEventListener("click", () => workbench.pointing.undo());
find("#redo").addEventListener("click", () => workbench.pointing.redo());
find("#diameter").addEventListener("input", (event) => useBrush(event.target.value));
find("#options").addEventListener("submit", (event) => {
  event.preventDefault();
  if (workbench?.viewer.selected !== null) workbench?.caption([workbench.viewer.selected], true);
});
find("#options").addEventListener("input", () => workbench?.viewer.draw());
find("#sides").addEventListener("change", (event) => { workbench.pointing.label = Number(event.target.value); });

// A notice stays until the next action, whatever the running requests report meanwhile.
for (const type of ["pointerdown", "keydown", "drop", "paste"]) {
  document.addEventListener(type, () => { find("#notice").textContent = ""; }, true);
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => event.relatedTarget === null && document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  openFirst(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => openFirst(event.clipboardData.files, "pasted"));

// Keys of the drafted region and of captions; captured before the picture and the list handle them.
document.addEventListener("keydown", (event) => {
  if (workbench === null || event.altKey) return;
  const { viewer, pointing, zoom } = workbench;
  if (event.ctrlKey || event.metaKey) {
    const isText = event.target.closest?.("input:not([type=radio], [type=range]), textarea");
    const key = event.key.toLowerCase();
    if (isText || pointing.mode === "select" || !["z", "y"].includes(key)) return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) pointing.redo();
    else pointing.undo();
    return;
  }
  const onPicture = event.target === viewer.stage;
  const onRegions = onPicture || event.target.closest?.('[role="treeitem"]');
  if (event.key === "Escape") {
    if (!workbench.cancel()) return;
  } else if (onPicture && (zoom.key(event) || pointing.key(event))) {
    if (pointing.cursor) zoom.reveal([pointing.cursor.x, pointing.cursor.y, 0, 0]);
  } else if (event.key === "Enter" && onRegions) {
    if (viewer.draft?.region && viewer.selected === null) workbench.commit();
    else if (viewer.selected !== null) viewer.actions.caption([viewer.selected]);
  } else if (onPicture && pointing.isPainting && ["[", "]"].includes(event.key)) {
    useBrush(Number(find("#diameter").value) + (event.key === "]" ? BRUSH_STEP : -BRUSH_STEP));
  } else {
    return;
  }
  event.preventDefault();
}, true);

async function showModel() {
  try {
    const model = await service.model();
    find("#model").textContent = `model ${model.id}`;
    options.configure(model);
  } catch (error) {
    showProblem(error, showModel);
  }
}

showModel();
