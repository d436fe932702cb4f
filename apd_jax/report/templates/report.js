"use strict";

// Small helpers, also used by browser.js. Text only ever enters the page as text.

const SVG = "http://www.w3.org/2000/svg";

function svgElement(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function formatNumber(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e6 ? value.toExponential(2).replace("e+", "e") : String(+value.toPrecision(4));
  return text.replaceAll("-", "−");
}

function readData(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

// Training curves: a line at the nearest step, a dot on every seed, the values in a box.

function nearest(positions, x) {
  let best = 0;
  for (let i = 1; i < positions.length; i++) {
    if (Math.abs(positions[i] - x) < Math.abs(positions[best] - x)) best = i;
  }
  return best;
}

function readoutText(chart, index, seeds) {
  const step = `step ${chart.steps[index].toLocaleString("en")}`;
  const now = chart.values.map((line) => line[index]);
  if (now.length === 1) return `${step}\n${formatNumber(now[0])}`;
  if (now.length <= 16) return [step, ...now.map((value, seed) => `seed ${seeds[seed] ?? seed}  ${formatNumber(value)}`)].join("\n");
  const sorted = now.filter((value) => value !== null).sort((a, b) => a - b);
  const at = (share) => formatNumber(sorted[Math.round(share * (sorted.length - 1))] ?? null);
  return `${step}, ${now.length} seeds\nlowest  ${at(0)}\nmedian  ${at(0.5)}\nhighest  ${at(1)}`;
}

function followPointer(figure, chart, seeds) {
  const svg = figure.querySelector("svg");
  const lines = chart.y.map((_, seed) => svg.querySelector(`[data-seed="${seed}"]`));
  const overlay = svgElement("g", { visibility: "hidden" });
  const cursor = svgElement("path", { class: "cursor" });
  const dots = lines.map((line) =>
    svgElement("circle", { r: 3, class: line.classList.contains("failed") ? "dot failed" : "dot" }));
  overlay.append(cursor, ...dots);
  svg.append(overlay);
  const box = element("div", { class: "tooltip", hidden: "" });
  figure.append(box);
  const hide = () => { box.hidden = true; overlay.setAttribute("visibility", "hidden"); };
  const show = (event) => {
    const frame = svg.getBoundingClientRect();
    const view = svg.viewBox.baseVal;
    const index = nearest(chart.x, ((event.clientX - frame.left) / frame.width) * view.width);
    const x = chart.x[index];
    cursor.setAttribute("d", `M${x} 8V${view.height - 24}`);
    dots.forEach((dot, seed) => {
      const y = chart.y[seed][index];
      dot.setAttribute("visibility", y === null ? "hidden" : "inherit");
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y ?? 0);
    });
    overlay.setAttribute("visibility", "visible");
    box.textContent = readoutText(chart, index, seeds);
    box.hidden = false;
    const at = (x / view.width) * frame.width;
    const left = at > frame.width / 2 ? at - box.offsetWidth - 10 : at + 10;
    box.style.left = `${Math.max(0, Math.min(left, frame.width - box.offsetWidth))}px`;
    box.style.top = `${frame.top - figure.getBoundingClientRect().top + 8}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);  // a tap: touch screens may send no move
  svg.addEventListener("pointerleave", hide);
}

function startCurves() {
  const { seeds, charts } = readData("chart-data");
  for (const figure of document.querySelectorAll("[data-chart]")) {
    followPointer(figure, charts[Number(figure.dataset.chart)], seeds);
  }
}

// The command, figures and printing.

async function copyText(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    const selection = window.getSelection();
    selection.selectAllChildren(source);
    return document.execCommand("copy");
  }
}

function startCopy() {
  const button = document.getElementById("copy");
  if (!button) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const copied = await copyText(document.getElementById("command"));
    button.textContent = copied ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

function startFigures() {
  const dialog = document.getElementById("enlarged");
  if (!dialog) return;
  const large = dialog.querySelector("img");
  for (const image of document.querySelectorAll(".panel img")) {
    const open = () => {
      large.src = image.src;
      large.alt = image.alt;
      dialog.showModal();
    };
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.setAttribute("aria-label", `${image.alt}: enlarge`);
    image.addEventListener("click", open);
    image.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      open();
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

function startPrinting() {
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
}

startCurves();
startCopy();
startFigures();
startPrinting();
