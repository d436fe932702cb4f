
// The two panes of the component browser and what links them.

class Browser {
  constructor(data) {
    this.components = data.num_components;
    this.features = data.num_features;
    this.outputs = data.num_outputs;
    this.sites = data.sites.map((site) => new Site(site));
    this.attributions = decode(data.attributions);
    this.mask = decode(data.topk_mask);
    this.targetOutputs = decode(data.target_outputs);
    this.topkOutputs = decode(data.topk_outputs);
    this.without = decode(data.without);
    this.activeShare = decode(data.active_share);
    this.represented = data.represented;
    this.representedBy = Array.from({ length: this.features }, (_, feature) =>
      this.represented.flatMap((features, component) => (features.includes(feature) ? [component] : [])));
    this.component = Math.max(0, this.represented.findIndex((features) => features.length > 0));
    this.feature = this.represented[this.component]?.[0] ?? 0;
  }

  start() {
    const describe = (component) => `Component ${component}: ${this.features_of(component)}`;
    const count = (feature) => this.representedBy[feature].length;
    startPane("component", this.components, describe, (i) => this.represented[i].length, (i) => this.showComponent(i));
    startPane("feature", this.features, (i) => `Feature ${i}`, count, (i) => this.showFeature(i));
    document.querySelector(".browser").hidden = false;
    this.showComponent(this.component);
    this.showFeature(this.feature);
    document.getElementById("own-scale").addEventListener("change", () => this.showWeights());
    const redraw = () => { this.showComponent(this.component); this.showFeature(this.feature); };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    let width = window.innerWidth, timer;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return;
      width = window.innerWidth;
      clearTimeout(timer);
      timer = setTimeout(redraw, 100);
    });
  }

  features_of(component) {
    const features = this.represented[component];
    if (!features.length) return "no feature";
    return `${features.length === 1 ? "feature" : "features"} ${features.join(", ")}`;
  }

  featureLinks = (features) => linkList(features, (feature) => this.showFeature(feature), "feature");

  componentLinks = (components) => linkList(components, (component) => this.showComponent(component), "component");

  showComponent(component) {
    this.component = component;
    select("component", component);
    const column = (table) => Array.from({ length: this.features }, (_, f) => table[f * this.components + component]);
    const attributions = column(this.attributions);
    const on = column(this.mask);
    document.getElementById("component-summary").replaceChildren(
      element("p", {}, "Represents ", ...this.featureLinks(this.represented[component]), "."),
      element("p", {}, `Active on ${percent(this.activeShare[component])} of samples. Switched on by `,
        ...this.featureLinks(on.flatMap((flag, f) => (flag ? [f] : []))), " alone."));
    drawBars(document.getElementById("component-activity"), {
      title: "Attribution for each input feature alone",
      note: ["switched on", swatch("on"), " off", swatch("")],
      values: attributions, on, axis: "input feature",
      describe: (f) => `feature ${f}: attribution ${formatNumber(attributions[f])}, ${on[f] ? "on" : "off"}; click to open`,
      pick: (f) => this.showFeature(f),
    });
    fillTop("component", attributions, on, column(this.without), this.featureLinks, (f) => this.componentLinks(this.representedBy[f]));
    this.showWeights();
  }

  showWeights() {
    const total = this.sites.reduce((sum, site) => sum + site.squaredNorm(this.component), 0);
    document.getElementById("weights-name").textContent = this.component;
    // All blocks are in place before any is drawn: their width depends on how many there are.
    const blocks = this.sites.map(() => element("div", { class: "site" }));
    document.getElementById("component-sites").replaceChildren(...blocks);
    this.sites.forEach((site, i) => showSite(blocks[i], site, this.component, total, this.sites.length));
  }

  showFeature(feature) {
    this.feature = feature;
    select("feature", feature);
    const row = (table, width) => Array.from(table.subarray(feature * width, (feature + 1) * width));
    const attributions = row(this.attributions, this.components);
    const on = row(this.mask, this.components);
    const target = row(this.targetOutputs, this.outputs);
    const topk = row(this.topkOutputs, this.outputs);
    const error = target.reduce((sum, value, o) => sum + (value - topk[o]) ** 2, 0) / this.outputs;
    document.getElementById("feature-summary").replaceChildren(
      element("p", {}, "Represented by ", ...this.componentLinks(this.representedBy[feature]), "."),
      element("p", {}, "Switches on ", ...this.componentLinks(on.flatMap((flag, c) => (flag ? [c] : []))),
        `. Mean squared error of the output ${formatNumber(error)}.`));
    drawBars(document.getElementById("feature-attributions"), {
      title: "Attribution of each component",
      note: ["switched on", swatch("on"), " off", swatch("")],
      values: attributions, on, axis: "component",
      describe: (c) => `component ${c}: attribution ${formatNumber(attributions[c])}, ${on[c] ? "on" : "off"}; click to open`,
      pick: (c) => this.showComponent(c),
    });
    fillTop("feature", attributions, on, row(this.without, this.components), this.componentLinks, (c) => this.featureLinks(this.represented[c]));
    drawBars(document.getElementById("feature-outputs"), {
      title: "Output",
      note: ["target", swatch(""), " top-k", swatch("on round")],
      values: target, marks: topk, axis: "output",
      describe: (o) => `output ${o}: target ${formatNumber(target[o])}, top-k ${formatNumber(topk[o])}`,
    });
  }
}

// The five items with the largest attribution.
function fillTop(kind, attributions, on, without, link, represents) {
  const order = attributions.map((_, i) => i).sort((a, b) => attributions[b] - attributions[a]).slice(0, 5);
  document.querySelector(`#${kind}-top tbody`).replaceChildren(...order.map((i) =>
    element("tr", {},
      element("td", {}, ...link([i]).slice(1)),
      element("td", { class: "num" }, formatNumber(attributions[i])),
      element("td", {}, on[i] ? "✓ on" : "off"),
      element("td", { class: "num" }, formatNumber(without[i])),
      element("td", {}, ...represents(i)))));
}

function swatch(kind) {
  return element("span", { class: `swatch ${kind}`, "aria-hidden": "true" });
}

// "features 3, 4" as buttons that open an item, at most twelve of them.
function linkList(items, open, word) {
  if (!items.length) return [`no ${word}`];
  const nodes = items.slice(0, 12).flatMap((item, i) => {
    const link = element("button", { type: "button", class: "link" }, String(item));
    link.addEventListener("click", () => open(item));
    return i ? [", ", link] : [link];
  });
  if (items.length > 12) nodes.push(` and ${items.length - 12} more`);
  return [items.length === 1 ? `${word} ` : `${word}s `, ...nodes];
}

// The picker and the map of cells of one pane.
function startPane(kind, count, label, number, show) {
  const picker = document.getElementById(`${kind}-select`);
  const map = document.getElementById(`${kind}-map`);
  for (let i = 0; i < count; i++) {
    picker.append(element("option", { value: i }, label(i)));
    const size = number(i);
    const cell = element("button", { type: "button", tabindex: -1, title: label(i), "aria-label": label(i) }, String(i));
    cell.className = size === 0 ? "cell" : size === 1 ? "cell one" : "cell more";
    cell.addEventListener("click", () => show(i));
    map.append(cell);
  }
  picker.addEventListener("change", () => show(Number(picker.value)));
  for (const button of document.querySelectorAll(`#${kind}-pane [data-step]`)) {
    button.addEventListener("click", () => show((Number(picker.value) + Number(button.dataset.step) + count) % count));
  }
}

function select(kind, index) {
  document.getElementById(`${kind}-select`).value = index;
  const map = document.getElementById(`${kind}-map`);
  map.querySelector("[aria-pressed=true]")?.removeAttribute("aria-pressed");
  map.children[index].setAttribute("aria-pressed", "true");
}

// Weights and singular values of a component at one site, next to the target's weights.
function showSite(block, site, component, total, siteCount) {
  const matrix = site.matrix(component);
  const values = site.singularValues(component);
  const layout = heatmapLayout(site, Math.max(150, block.clientWidth - 24));
  const largest = (numbers) => numbers.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12);
  const shared = Math.max(largest(site.target), largest(matrix));
  const peak = document.getElementById("own-scale").checked ? largest(matrix) : shared;
  const readout = element("p", { class: "readout" }, axisText(site, layout));
  const figures = [["component", matrix, peak], ["target", site.target, shared]].map(([name, numbers, limit]) => {
    const canvas = element("canvas", { role: "img", "aria-label": `${site.name}: weights of the ${name}` });
    drawHeatmap(canvas, numbers, site, layout, limit);
    pointAtHeatmap(canvas, numbers, matrix, site, layout, readout);
    return element("figure", {}, element("figcaption", {}, name), labelHeatmap(canvas, layout));
  });
  figures.push(element("figure", {}, element("figcaption", {}, `singular values, largest ${formatNumber(values[0])}`), drawSpectrum(values)));
  block.append(
    element("h4", {}, site.name),
    element("p", { class: "note" }, siteText(site, component, layout, total, siteCount)),
    element("div", { class: "matrices" }, ...figures), readout,
    element("p", { class: "note" }, ...(peak === shared ? ["weights "] : ["component ", scaleBar(peak), ", target "]), scaleBar(shared)));
}

function scaleBar(limit) {
  return element("span", { class: "range" }, `−${formatNumber(limit)}`, element("span", { class: "scale" }), formatNumber(limit));
}

function siteText(site, component, layout, total, siteCount) {
  const norm = site.squaredNorm(component);
  if (norm === 0) return "All weights are zero here.";
  const first = percent(site.singularValues(component)[0] ** 2 / norm);
  const parts = [siteCount > 1
    ? `${percent(norm / total)} of the component's squared norm, ${first} of that in one singular direction.`
    : `${first} of the squared norm is in one singular direction.`];
  if (site.form === "triplets") {
    const kept = site.kept === 1 ? "the leading singular triplet" : `the ${site.kept} leading singular triplets`;
    parts.push(`Drawn from ${kept}, which ${site.kept === 1 ? "holds" : "hold"} ${percent(site.explained[component])}, in 8 bits.`);
  }
  const group = layout.groupAcross * layout.groupDown;
  if (group > 1) parts.push(`A cell is the largest of ${group} entries.`);
  return parts.join(" ");
}

function axisText(site, layout) {
  const across = layout.transposed ? site.rows : site.columns;
  const down = layout.transposed ? site.columns : site.rows;
  return `across: ${layout.across} ${across}s, down: ${layout.down} ${down}s`;
}

function pointAtHeatmap(canvas, shown, matrix, site, layout, readout) {
  const show = (event) => {
    const frame = canvas.getBoundingClientRect();
    const column = Math.max(0, Math.min(layout.columns - 1, Math.floor(((event.clientX - frame.left) / frame.width) * layout.columns)));
    const row = Math.max(0, Math.min(layout.rows - 1, Math.floor(((event.clientY - frame.top) / frame.height) * layout.rows)));
    const at = largestEntry(shown, site, layout, column, row);
    const place = `${site.rows} ${Math.floor(at / site.width)}, ${site.columns} ${at % site.width}`;
    readout.textContent = `${place}: component ${formatNumber(matrix[at])}, target ${formatNumber(site.target[at])}`;
  };
  canvas.addEventListener("pointermove", show);
  canvas.addEventListener("pointerdown", show);
  canvas.addEventListener("pointerleave", () => { readout.textContent = axisText(site, layout); });
}

new Browser(readData("browser-data")).start();
