
// Bar charts and heatmaps of the component browser.

const BARS = { height: 150, left: 44, top: 8, bottom: 130 };

// Scales of a bar chart that is as wide as its figure.
function barScales(figure, numbers, count) {
  const width = Math.max(200, figure.clientWidth);
  const high = Math.max(1e-12, ...numbers);
  const low = Math.min(0, ...numbers);
  const step = (width - BARS.left) / count;
  return {
    width, high, low, step,
    gap: step > 6 ? Math.min(8, step * 0.25) : step > 2.5 ? 0.5 : 0,
    y: (value) => BARS.bottom - ((value - low) / (high - low)) * (BARS.bottom - BARS.top),
    middle: (index) => BARS.left + (index + 0.5) * step,
  };
}

// Multiples of 1, 2 or 5 times a power of ten, three or four of them.
function roundTicks(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 3));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size * 3.5 >= high - low);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
  return ticks;
}

function drawAxes(svg, scales, count) {
  const { low, high, width, step, y } = scales;
  for (const tick of roundTicks(low, high)) {
    svg.append(svgElement("path", { class: "grid", d: `M${BARS.left} ${y(tick)}H${width}` }));
    const label = formatNumber(+tick.toPrecision(3));
    svg.append(svgElement("text", { class: "tick", x: BARS.left - 6, y: y(tick) + 4, "text-anchor": "end" }, label));
  }
  const every = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000].find((n) => n * step >= 26) ?? 2000;
  for (let i = 0; i < count; i += every) {
    svg.append(svgElement("text", { class: "tick", x: scales.middle(i), y: BARS.height - 5, "text-anchor": "middle" }, i));
  }
}

// One bar an index; bars in `on` are coloured and carry a dot; `marks` adds a second value as a dot.
function drawBars(figure, { title, note, values, on, marks, describe, pick, axis }) {
  const scales = barScales(figure, marks ? [...values, ...marks] : values, values.length);
  const { y, middle, step, gap } = scales;
  const svg = svgElement("svg", { viewBox: `0 0 ${scales.width} ${BARS.height}`, height: BARS.height, role: "img", "aria-label": title });
  drawAxes(svg, scales, values.length);
  values.forEach((value, i) => {
    const top = Math.min(y(value), y(0));
    svg.append(svgElement("rect", {
      class: on?.[i] ? "bar on" : "bar", x: middle(i) - (step - gap) / 2, y: top,
      width: Math.max(0.8, step - gap), height: Math.abs(y(value) - y(0)),
    }));
    if (on?.[i]) svg.append(svgElement("circle", { class: "mark", cx: middle(i), cy: Math.max(3, top - 5), r: 2.5 }));
    if (!marks) return;
    svg.append(svgElement("circle", { class: "mark", cx: middle(i), cy: y(marks[i]), r: Math.min(4, Math.max(1.8, step / 3)) }));
  });
  svg.append(svgElement("path", { class: "axis", d: `M${BARS.left} ${y(0)}H${scales.width}` }));
  const readout = element("p", { class: "readout" }, axis);
  pointAtBars(svg, scales, values.length, readout, { describe, pick, axis });
  figure.replaceChildren(element("figcaption", {}, title, " ", element("span", { class: "note" }, ...note)), svg, readout);
}

function pointAtBars(svg, { step }, count, readout, { describe, pick, axis }) {
  const hover = svgElement("rect", { class: "hover", y: BARS.top, height: BARS.bottom - BARS.top, width: step, visibility: "hidden" });
  svg.append(hover);
  const indexAt = (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left - BARS.left;
    return Math.max(0, Math.min(count - 1, Math.floor(x / step)));
  };
  const show = (event) => {
    hover.setAttribute("x", BARS.left + indexAt(event) * step);
    hover.setAttribute("visibility", "visible");
    readout.textContent = describe(indexAt(event));
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => {
    hover.setAttribute("visibility", "hidden");
    readout.textContent = axis;
  });
  if (!pick) return;
  svg.classList.add("clickable");
  svg.addEventListener("click", (event) => pick(indexAt(event)));
}

// Heatmaps: the longer side runs across; where a matrix has more entries than pixels, a cell is its largest entry.
function heatmapLayout(site, available) {
  const transposed = site.height > site.width && site.height > 8;
  const across = transposed ? site.height : site.width;
  const down = transposed ? site.width : site.height;
  const groupAcross = Math.ceil(across / Math.floor(available / 2));
  const groupDown = Math.ceil(down / 80);
  const columns = Math.ceil(across / groupAcross);
  const rows = Math.ceil(down / groupDown);
  const cell = Math.max(2, Math.min(26, Math.floor(available / columns)));
  const cellHeight = Math.max(cell, Math.min(14, Math.floor(120 / rows)));
  return { transposed, across, down, groupAcross, groupDown, columns, rows, cell, cellHeight };
}

function largestEntry(matrix, site, layout, column, row) {
  const { transposed, groupAcross, groupDown } = layout;
  let best = -1;
  for (let a = column * groupAcross; a < Math.min(layout.across, (column + 1) * groupAcross); a++) {
    for (let d = row * groupDown; d < Math.min(layout.down, (row + 1) * groupDown); d++) {
      const at = transposed ? a * site.width + d : d * site.width + a;
      if (best < 0 || Math.abs(matrix[at]) > Math.abs(matrix[best])) best = at;
    }
  }
  return best;
}

function heatColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).split(",").map(Number);
  return { zero: read("--heat-zero"), negative: read("--heat-negative"), positive: read("--heat-positive") };
}

function drawHeatmap(canvas, matrix, site, layout, peak) {
  canvas.width = layout.columns;
  canvas.height = layout.rows;
  canvas.style.width = `${layout.columns * layout.cell}px`;
  canvas.style.height = `${layout.rows * layout.cellHeight}px`;
  const context = canvas.getContext("2d");
  const image = context.createImageData(layout.columns, layout.rows);
  const colours = heatColours();
  for (let row = 0; row < layout.rows; row++) {
    for (let column = 0; column < layout.columns; column++) {
      const value = matrix[largestEntry(matrix, site, layout, column, row)];
      const end = value < 0 ? colours.negative : colours.positive;
      const share = Math.min(1, Math.abs(value) / peak);
      const at = 4 * (row * layout.columns + column);
      for (let k = 0; k < 3; k++) image.data[at + k] = colours.zero[k] + share * (end[k] - colours.zero[k]);
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

// Index labels next to a heatmap whose cells are large enough for them.
function labelHeatmap(canvas, layout) {
  if (layout.groupAcross > 1 || layout.groupDown > 1 || layout.cellHeight < 13) return canvas;
  const numbers = (count) => Array.from({ length: count }, (_, i) => element("span", {}, String(i)));
  const down = element("div", { class: "down" }, ...numbers(layout.rows));
  if (layout.cell < 18) return element("div", { class: "labelled" }, down, canvas);
  return element("div", { class: "labelled" }, down, canvas, element("div", { class: "across" }, ...numbers(layout.columns)));
}

// Small bars of the singular values, in the same style at every size.
function drawSpectrum(values) {
  const shown = [...values.slice(0, 25)];
  const step = Math.min(14, 200 / shown.length);
  const width = step * shown.length;
  const high = Math.max(1e-12, ...shown);
  const svg = svgElement("svg", { class: "spectrum", width, height: 62, viewBox: `0 0 ${width} 62`, role: "img", "aria-label": "singular values" });
  shown.forEach((value, i) => {
    const size = Math.max(0.5, (value / high) * 58);
    svg.append(svgElement("rect", { x: i * step, y: 60 - size, width: step * 0.75, height: size }));
  });
  svg.append(svgElement("path", { class: "axis", d: `M0 60.5H${width}` }));
  return svg;
}
