"use strict";

// The page: selection of an image, modes, error messages and the token.

const find = (selector) => document.querySelector(selector);
const service = new Service(askForToken);
let workbench = null;

const callbacks = {
  status(text, done) {
    find("#status").replaceChildren(...(done === null ? [] : [node("progress", { value: done, "aria-hidden": "true" })]), text);
  },
  failed: showProblem,
  spoken(text) { find("#spoken").textContent = text; },
  busy(isBusy) {
    find("#stop").hidden = !isBusy;
    find("#everything").hidden = isBusy;
  },
  async copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      callbacks.status("Copied.", null);
    } catch {
      // Browsers provide no clipboard without a secure connection.
      showText(text);
    }
  },
};

// Shows an image, and segments it.
async function openImage(file) {
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
  workbench = new Workbench(service, named, find("#panel"), size, picture, callbacks);
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
    await openImage(new File([await response.blob()], path.split("/").pop(), { type: response.headers.get("Content-Type") ?? "" }));
  } catch (error) {
    showProblem(error, () => openExample(path));
  }
}

function openFirst(files) {
  const image = [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
  if (image) openImage(image);
}

function useMode(mode) {
  find(`#modes [value="${mode}"]`).checked = true;
  find("#sides").hidden = mode !== "point";
  workbench.pointing.use(mode);
}

// Shows an error; retry: function of the button "Try again", or null for no button.
function showProblem(error, retry) {
  const field = error.param ? node("code", {}, error.param) : null;
  const parts = [node("p", {}, node("b", {}, headline(error)), " ", field, field ? ": " : null, error.message)];
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

function headline({ status, type }) {
  const ofStatus = { 413: "The image is too large for this service.", 503: "The service is not ready.", 504: "The request timed out." };
  const ofType = { authentication_error: "A token is required.", rate_limit_error: "The service is busy.", invalid_request_error: "The request is invalid." };
  return ofStatus[status] ?? ofType[type] ?? "The request failed.";
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

// Shows the form for the token; resolves to the token, or to null if cancelled.
function askForToken(reason) {
  const form = find("#token");
  const field = find("#token-field");
  form.hidden = false;
  find("#token label").textContent = service.token === null ? "This service requires a token" : `Token rejected: ${reason}`;
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
      finish(field.value.trim());
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
find("#sides").addEventListener("change", (event) => { workbench.pointing.label = Number(event.target.value); });

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
document.addEventListener("paste", (event) => openFirst(event.clipboardData.files));

// Keys of the drafted region and of captions; captured before the picture and the list handle them.
document.addEventListener("keydown", (event) => {
  if (workbench === null || event.altKey || event.ctrlKey || event.metaKey) return;
  const { viewer, pointing } = workbench;
  const onPicture = event.target === viewer.stage;
  const onRegions = onPicture || event.target.closest?.('[role="treeitem"]');
  if (event.key === "Escape") {
    if (!workbench.cancel()) return;
  } else if (event.key === "Enter" && onRegions) {
    if (viewer.draft?.region && viewer.selected === null) workbench.commit();
    else if (viewer.selected !== null) viewer.actions.caption([viewer.selected]);
  } else if (!(onPicture && pointing.key(event))) {
    return;
  }
  event.preventDefault();
}, true);

service.model().then((name) => { find("#model").textContent = `model ${name}`; }, (error) => showProblem(error, null));
