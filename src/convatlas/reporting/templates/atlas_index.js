// The filters of the map and of the table below it, and what a box of the map belongs to.

const form = document.querySelector(".filters");
const boxes = [...document.querySelectorAll(".map .family")];
const edges = [...document.querySelectorAll(".map .edge")];
const boxOf = new Map(boxes.map((box) => [box.dataset.family, box]));

function filter() {
  const { idea, task, first, last, word } = Object.fromEntries(new FormData(form));
  const shown = new Set();
  for (const box of boxes) {
    const { family, year, task: own, idea: ideas } = box.dataset;
    const said = box.textContent.toLowerCase().includes(word.trim().toLowerCase());
    const fits = (!task || own === task) && year >= first && year <= last && said;
    if (fits && (!idea || ideas.split(" ").includes(idea))) shown.add(family);
  }
  const sources = new Set();
  for (const edge of edges) {
    const visible = shown.has(edge.dataset.to) && (!idea || edge.dataset.idea === idea);
    edge.classList.toggle("faint", !visible);
    if (visible) sources.add(edge.dataset.from);
  }
  for (const box of boxes) {
    box.classList.toggle("faint", !shown.has(box.dataset.family) && !(idea && sources.has(box.dataset.family)));
  }
  for (const part of document.querySelectorAll("tbody[data-family]")) part.hidden = !shown.has(part.dataset.family);
  form.querySelector("output").textContent = shown.size === boxes.length ? "" : `${shown.size} of ${boxes.length} families`;
}

function near(family, direction, found = new Set()) {
  for (const edge of edges) {
    const [here, there] = direction > 0 ? [edge.dataset.from, edge.dataset.to] : [edge.dataset.to, edge.dataset.from];
    if (here === family && !found.has(edge)) {
      found.add(edge);
      near(there, direction, found);
    }
  }
  return found;
}

function pointOut(family) {
  const found = family ? new Set([...near(family, 1), ...near(family, -1)]) : new Set();
  for (const edge of edges) edge.classList.toggle("near", found.has(edge));
}

form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
for (const [family, box] of boxOf) {
  for (const event of ["pointerenter", "focus"]) box.addEventListener(event, () => pointOut(family));
  for (const event of ["pointerleave", "blur"]) box.addEventListener(event, () => pointOut(null));
}
filter();
document.documentElement.dataset.ready = "true";
