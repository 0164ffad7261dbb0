// Draws the charts of a page, each when it is first seen.

async function draw(container) {
  const spec = JSON.parse(document.getElementById(container.dataset.spec).textContent);
  await window.drawChart(container, spec);
  for (const input of container.querySelectorAll("input[type=range]")) input.setAttribute("aria-label", input.name);
}

for (const note of document.querySelectorAll("[data-without-script]")) note.remove();
await Promise.all([...document.querySelectorAll("[data-spec]")].map(draw));
document.documentElement.dataset.ready = "true";
