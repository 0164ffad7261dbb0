// Two to four nets side by side: costs, scores, differences, curves and drawings.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const facts = read("facts");
const groups = read("group-data");
const form = document.querySelector("form.filters");
const selects = [...form.elements.net];
const HUES = 8;

async function unpacked() {
  const bytes = Uint8Array.from(atob(document.getElementById("drawing-data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function draw(container, rows) {
  const spec = read(container.dataset.spec);
  if (rows) spec.data.find((source) => source.name === "rows").values = rows;
  return window.drawChart(container, spec);
}

function make(tag, text = "", attributes = {}) {
  const element = Object.assign(document.createElement(tag), { textContent: text });
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function fill(table, head, rows) {
  const top = make("tr");
  top.append(...head.map((text) => make("th", text, { scope: "col" })));
  const body = rows.map(([name, ...cells]) => {
    const row = make("tr");
    row.append(make("th", name, { scope: "row" }), ...cells.map((text) => make("td", text)));
    return row;
  });
  const [thead, tbody] = [make("thead"), make("tbody")];
  thead.append(top);
  tbody.append(...body);
  table.replaceChildren(thead, tbody);
}

function short(value) {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, Number(value.toPrecision(3)))) / 3)));
  return power ? `${Number((value / 1000 ** power).toPrecision(3))}\u2009${" kMGT"[power]}` : String(value);
}
const signed = (value, digits) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)}`;

function difference(group, one, other) {
  const [first, second] = one < other ? [one, other] : [other, one];
  const found = group.pairs[`${first} ${second}`];
  if (!found) return ["", ""];
  const turn = (value) => (value === null ? null : one < other ? value : -value);
  const [value, low, high] = found.map(turn);
  const written = (number) => signed(number, group.digits);
  const known = low !== null && high !== null;
  const ends = known ? `${written(Math.min(low, high))} to ${written(Math.max(low, high))}` : "–";
  return [written(value), ends];
}

const variantsOf = (group, nets) => group.variants.map((v, n) => [v, n]).filter(([v]) => nets.includes(v.net));

function showScores(nets) {
  const place = document.getElementById("groups");
  place.replaceChildren();
  for (const group of groups) {
    const found = variantsOf(group, nets);
    if (new Set(found.map(([v]) => v.net)).size < 2) continue;
    const [[reference, first]] = found;
    const box = make("div", "", { class: "scroll", role: "region", "aria-label": group.title, tabindex: "0" });
    const table = make("table", "", { class: "plain" });
    fill(
      table,
      ["Variant", `Test ${group.metric}`, "95 % interval", "Seeds", `Against ${reference.title}`, "95 % interval of it"],
      found.map(([v, n]) => [v.title, v.score, v.interval, String(v.seeds), ...(n === first ? ["", ""] : difference(group, first, n))]),
    );
    box.append(table);
    place.append(make("h3", group.title), box);
  }
  if (!place.children.length) place.append(make("p", "No study of the plan has finished runs of two of these nets."));
}

function showCosts(nets) {
  const row = (title, value) => [title, ...nets.map((net) => value(facts[net]))];
  fill(document.getElementById("cost-table"), ["", ...nets.map((net) => facts[net].title)], [
    row("Year", (net) => String(net.year ?? "")),
    row("Input", (net) => net.input.join(" × ")),
    row("Parameters", (net) => short(net.parameters)),
    row("MACs of an image", (net) => short(net.macs)),
    row("Kept for backward, an image", (net) => `${short(net.stored_bytes)}B`),
    row("Convolutions", (net) => String(net.convolutions)),
    row("Joins", (net) => String(net.joins)),
  ]);
}

function showDrawings(nets, drawings) {
  const side = document.getElementById("side");
  side.replaceChildren(
    ...nets.map((net) => {
      const column = make("div");
      const title = make("h3");
      title.append(make("a", facts[net].title, { href: `nets/${net}.html` }));
      const sheet = make("div", "", { class: "sheet", role: "region", "aria-label": `Drawing of ${facts[net].title}, scrolls`, tabindex: "0" });
      sheet.innerHTML = drawings[net]; // our own drawing, its texts are escaped
      column.append(title, sheet);
      return column;
    }),
  );
}

function offerCurves(nets) {
  const select = document.getElementById("curve-group");
  const found = groups.map((group, n) => [group, n]).filter(([group]) => variantsOf(group, nets).some(([v]) => v.curve.length));
  select.replaceChildren(...found.map(([group, n]) => make("option", group.title, { value: String(n) })));
}

let curveView;

async function showCurves(nets) {
  const group = groups[document.getElementById("curve-group").value];
  const found = group ? variantsOf(group, nets).slice(0, HUES) : [];
  const rows = found.flatMap(([v], n) => v.epochs.map((e, i) => ({ e, m: v.curve[i], v: v.title, c: `var(--hue-${n})` })));
  document.getElementById("curve-section").hidden = !rows.length;
  if (!rows.length) return; // Vega complains of a chart of nothing
  if (curveView) curveView.data("rows", rows).runAsync();
  else curveView = await draw(curveChart, rows);
  document.getElementById("curve-names").replaceChildren(
    ...found.map(([v], n) => {
      const item = make("li");
      item.append(make("span", "", { class: "swatch", style: `background: var(--hue-${n})` }), v.title);
      return item;
    }),
  );
}

for (const note of document.querySelectorAll("[data-without-script]")) note.remove();
form.hidden = false;
const drawings = await unpacked();
const [curveChart, ...others] = document.querySelectorAll("[data-spec]");
document.getElementById("chosen").hidden = false;
await Promise.all(others.map((container) => draw(container)));

function chosen() {
  return [...new Set(selects.map((select) => select.value).filter(Boolean))];
}

async function show() {
  const nets = chosen();
  showCosts(nets);
  showScores(nets);
  showDrawings(nets, drawings);
  offerCurves(nets);
  await showCurves(nets);
  history.replaceState(null, "", `#${nets.join(",")}`);
}

const asked = decodeURIComponent(location.hash.slice(1)).split(",").filter((net) => net in facts);
const usual = ["resnet50", "densenet121", ...Object.keys(facts)].filter((net) => net in facts);
const start = asked.length > 1 ? asked : [...new Set([...asked, ...usual])].slice(0, 2);
start.slice(0, selects.length).forEach((net, n) => (selects[n].value = net));
form.addEventListener("input", show);
document.getElementById("curve-group").addEventListener("input", () => showCurves(chosen()));
await show();
document.documentElement.dataset.ready = "true";
