// The page: images are built when they come near the screen; search and filters work on all of them.

const panels = [...document.querySelectorAll(".panel")].map((element) => ({
  element,
  image: JSON.parse(element.querySelector(".regions").textContent),
  jpeg: element.querySelector(".jpeg").textContent,
  view: null,
}));
const panelOf = new Map(panels.map((panel) => [panel.element, panel]));

const query = document.querySelector("#query");
const kind = document.querySelector("#kind");
const outlines = document.querySelector("#outlines");

const KINDS = {
  all: () => true,
  lookalikes: (region) => region.status === "ok" && region.lookalikes.length > 0,
  "self-checked": (region) => region.verdict === "self_checked",
  rejected: (region) => region.verdict === "rejected",
  "left-out": (region) => region.status !== "ok",
};

function searchedWords() {
  return query.value.toLowerCase().split(/\s+/).filter(Boolean);
}

function matcher() {
  const words = searchedWords();
  const isKind = KINDS[kind.value];
  return (region) => {
    if (!isKind(region)) return false;
    const text = [region.short, region.detailed, region.caption, region.status, region.verdict_reason].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function isSearching() {
  return query.value.trim() !== "" || kind.value !== "all";
}

function build(panel) {
  if (panel.view !== null) return;
  panel.view = new Panel(panel.element, panel.image, panel.jpeg);
  panel.element.classList.add("built");
  if (isSearching()) panel.view.filter(matcher(), true, searchedWords());
}

function search() {
  const matches = matcher();
  const searching = isSearching();
  let numRegions = 0;
  let numImages = 0;
  for (const panel of panels) {
    const found = panel.image.regions.filter(matches).length;
    numRegions += found;
    numImages += found > 0;
    panel.element.hidden = searching && found === 0;
    panel.view?.filter(matches, searching, searchedWords());
  }
  document.querySelector("#matches").textContent = searching ? `${counted(numRegions, "region")} in ${counted(numImages, "image")}` : "";
}

query.addEventListener("input", search);
kind.addEventListener("change", search);
outlines.addEventListener("change", () => document.body.classList.toggle("no-outlines", !outlines.checked));

const approaching = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    build(panelOf.get(entry.target));
    approaching.unobserve(entry.target);
  }
}, { rootMargin: "800px 0px" });
for (const panel of panels) {
  panel.element.style.setProperty("--ratio", panel.image.width / panel.image.height);
  approaching.observe(panel.element);
}
