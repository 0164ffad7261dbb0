// The page's own behaviour: charts, sorting, and pointing one variant out. Without it the tables still say everything.

const views = new Map(); // section of the page -> the views of its charts

async function draw(container) {
  const spec = JSON.parse(document.getElementById(container.dataset.spec).textContent);
  const view = await window.drawChart(container, spec);
  const section = container.closest("[data-group]");
  views.set(section, [...(views.get(section) ?? []), view]);
}

function pointOut(section, variant) {
  for (const button of section.querySelectorAll(".legend button")) {
    button.setAttribute("aria-pressed", String(button.value === variant));
  }
  const select = section.querySelector(".legend select");
  if (select) select.value = variant;
  for (const row of section.querySelectorAll("tr[data-variant]")) {
    row.classList.toggle("picked", row.dataset.variant === variant);
  }
  for (const view of views.get(section) ?? []) view.signal("picked", variant).runAsync();
}

function makeLegend(section) {
  const legend = section.querySelector(".legend");
  if (!legend) return;
  legend.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) pointOut(section, button.getAttribute("aria-pressed") === "true" ? "" : button.value);
  });
  legend.querySelector("select")?.addEventListener("change", (event) => pointOut(section, event.target.value));
}

// A cell sorts by its data-order; one without comes last, whichever way the column is sorted. Names sort as text.
function sortBy(table, index, falling) {
  const body = table.tBodies[0];
  const key = (row) => (index === 0 ? row.dataset.variant : row.cells[index].dataset.order);
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return (falling ? -1 : 1) * (index === 0 ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  };
  body.append(...[...body.rows].sort(compare));
}

function makeSortable(table) {
  const heads = [...table.querySelectorAll("th.sortable")];
  const columns = table.tBodies[0].rows[0].cells.length;
  heads.forEach((head, number) => {
    const index = number === 0 ? 0 : columns - heads.length + number;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const falling = before ? before === "ascending" : head.dataset.falling === "true";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      sortBy(table, index, falling);
    });
  });
}

for (const box of document.querySelectorAll("[data-charts]")) box.hidden = false;
for (const note of document.querySelectorAll("[data-without-script]")) note.remove();
document.querySelectorAll("table.results").forEach(makeSortable);
document.querySelectorAll("[data-group]").forEach(makeLegend);
await Promise.all([...document.querySelectorAll("[data-spec]")].map(draw));
document.documentElement.dataset.ready = "true";
