// Shows the nearest point of a chart under the pointer. Without this script the charts are the same, only silent.
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const points = svg.dataset.hover.split("\n").filter(Boolean).map((line) => {
    const [x, y, ...text] = line.split(" ");
    return { x: +x, y: +y, text: text.join(" ") };
  });
  if (!points.length) continue;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  const tip = document.createElement("div");
  tip.className = "tip";
  const figure = svg.parentNode;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const x = (event.clientX - box.left) / scale, y = (event.clientY - box.top) / scale;
    // Points are chosen by their x; among those of about the same x the nearest counts.
    const distance = (point) => Math.abs(point.x - x) * 4 + Math.abs(point.y - y);
    const near = points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    cursor.setAttribute("d", `M${near.x} ${near.y}h0`);
    tip.textContent = near.text;
    svg.append(cursor);
    figure.append(tip);
    const outer = figure.getBoundingClientRect(), half = tip.offsetWidth / 2;
    const left = box.left - outer.left + near.x * scale;
    tip.style.left = `${Math.min(Math.max(left, half), outer.width - half)}px`;
    tip.style.top = `${box.top - outer.top + near.y * scale}px`;
  });
  svg.addEventListener("pointerleave", () => { cursor.remove(); tip.remove(); });
}
