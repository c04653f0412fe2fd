// Charts as inline SVG. Colours are CSS variables, so that a change of theme needs no redraw.
const MARGIN = { left: 48, right: 12, top: 10, bottom: 26 };
const color = (index) => `var(--c${index % 8})`;

function ticks(low, high, count = 4) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.7);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

function smoothed(values, weight) {
  // Exponential mean with the start's bias removed, as TensorBoard does it.
  let mean = 0;
  let share = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

function frame(width, height, yTicks, y, xTicks, x) {
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0" });
  for (const value of yTicks) {
    picture.append(svg("line", { class: "gridline", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { x: MARGIN.left - 7, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  const bottom = height - MARGIN.bottom;
  picture.append(svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
  for (const value of xTicks) picture.append(svg("text", { x: x(value), y: bottom + 17, "text-anchor": "middle" }, number(value)));
  return picture;
}

function readOut(picture, steps, x, width, height, rowsAt) {
  // Pointer or arrow keys choose a step; rowsAt(index) lists [name, value, colour] to print.
  const line = svg("line", { class: "cursor", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
  picture.append(line);
  let current = steps.length - 1;
  const show = (index, left, top) => {
    current = Math.max(0, Math.min(steps.length - 1, index));
    line.setAttribute("x1", x(steps[current]));
    line.setAttribute("x2", x(steps[current]));
    line.setAttribute("visibility", "visible");
    const rows = rowsAt(current).map(([name, value, hue]) => el("tr", {}, el("td", {}, swatch(hue), name), el("td", {}, number(value))));
    tip.show(left, top, el("div", { class: "head" }, `Step ${steps[current]}`), el("table", {}, ...rows));
  };
  const hide = () => { line.setAttribute("visibility", "hidden"); tip.hide(); };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    let best = 0;
    steps.forEach((step, index) => { if (Math.abs(x(step) - at) < Math.abs(x(steps[best]) - at)) best = index; });
    show(best, event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    const box = picture.getBoundingClientRect();
    show(current + move, box.left + (x(steps[Math.max(0, Math.min(steps.length - 1, current + move))]) / width) * box.width, box.top + 20);
  });
}

function lineChart(chart, smoothing, width = 400, height = 200) {
  const hiddenNames = new Set();
  const panel = el("div", { class: "panel" });
  const draw = () => {
    const all = chart.series.map((one, index) => ({ ...one, hue: color(index) }));
    const shown = all.filter((one) => !hiddenNames.has(one.name));
    const scale = chart.isLog ? (value) => Math.log10(Math.max(value, 1e-12)) : (value) => value;
    const numbers = shown.flatMap((one) => one.values.map(scale));
    let low = Math.min(...numbers);
    let high = Math.max(...numbers);
    if (!numbers.length) [low, high] = [0, 1];
    if (high - low < 1e-12) { const pad = Math.abs(high) * 0.1 || 0.5; low -= pad; high += pad; }
    if (!chart.isLog && low > 0 && low < high * 0.5) low = 0;
    const pad = (high - low) * 0.06;
    if (low !== 0) low -= pad;
    high += pad;
    const steps = [...new Set(shown.flatMap((one) => one.steps))].sort((a, b) => a - b);
    const first = steps[0] ?? 0;
    const last = steps[steps.length - 1] ?? 1;
    const x = (step) => MARGIN.left + ((step - first) / (last - first || 1)) * (width - MARGIN.left - MARGIN.right);
    const place = (value) => MARGIN.top + (1 - (value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    const y = (value) => place(scale(value));
    const decades = [];
    if (chart.isLog) {
      for (let power = Math.ceil(low); power <= high; power += Math.max(1, Math.round((high - low) / 4))) decades.push(10 ** power);
      if (decades.length < 2) decades.splice(0, decades.length, 10 ** (low + pad), 10 ** (high - pad));
    }
    const picture = frame(width, height, chart.isLog ? decades : ticks(low, high), y, ticks(first, last, 6).filter(Number.isInteger), x);
    picture.setAttribute("aria-label", `${chart.title}: ${shown.map((one) => `${one.name} ends at ${number(one.values[one.values.length - 1])}`).join(", ")}`);
    for (const one of shown) {
      const path = (values) => values.map((value, index) => `${index ? "L" : "M"}${x(one.steps[index]).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      const stroke = { fill: "none", "stroke-linejoin": "round", style: `stroke:${one.hue}` };
      if (one.values.length === 1) picture.append(svg("circle", { cx: x(one.steps[0]), cy: y(one.values[0]), r: 3, style: `fill:${one.hue}` }));
      if (smoothing > 0) picture.append(svg("path", { d: path(one.values), "stroke-width": 1, opacity: 0.28, ...stroke }));
      picture.append(svg("path", { d: path(smoothed(one.values, smoothing)), "stroke-width": 2, ...stroke }));
    }
    const lookups = shown.map((one) => new Map(one.steps.map((step, index) => [step, one.values[index]])));
    if (steps.length) readOut(picture, steps, x, width, height, (index) => shown.map((one, which) => [one.name, lookups[which].get(steps[index]), one.hue]));
    const legend = el("div", { class: "legend" });
    if (all.length > 1) {
      for (const one of all) {
        const toggle = () => { if (!hiddenNames.delete(one.name)) hiddenNames.add(one.name); draw(); };
        legend.append(el("button", { type: "button", "aria-pressed": String(!hiddenNames.has(one.name)), onclick: toggle }, swatch(one.hue), one.name));
      }
    }
    panel.replaceChildren(el("div", { class: "chart-head" }, el("h3", {}, chart.title), el("span", { class: "note" }, chart.note)), legend, picture);
  };
  draw();
  return panel;
}

function stackedChart(times, width = 1240, height = 240) {
  const { steps, phases } = times;
  const totals = steps.map((_, index) => phases.reduce((sum, phase) => sum + phase.values[index], 0));
  const high = Math.max(...totals, 1e-9) * 1.05;
  const first = steps[0];
  const last = steps[steps.length - 1];
  const slot = (width - MARGIN.left - MARGIN.right) / steps.length;
  const x = (step) => MARGIN.left + slot / 2 + ((step - first) / (last - first || 1)) * (width - MARGIN.left - MARGIN.right - slot);
  const y = (value) => MARGIN.top + (1 - value / high) * (height - MARGIN.top - MARGIN.bottom);
  const picture = frame(width, height, ticks(0, high), y, ticks(first, last, 6).filter(Number.isInteger), x);
  const bar = Math.max(0.8, slot * 0.82);
  const below = steps.map(() => 0);
  phases.forEach((phase, which) => {
    phase.values.forEach((value, index) => {
      if (!value) return;
      picture.append(svg("rect", { x: x(steps[index]) - bar / 2, y: y(below[index] + value), width: bar, height: Math.max(0, y(below[index]) - y(below[index] + value)), style: `fill:${color(which)}` }));
      below[index] += value;
    });
  });
  readOut(picture, steps, x, width, height, (index) => [...phases.map((phase, which) => [phase.name, phase.values[index], color(which)]), ["total", totals[index], "transparent"]]);
  const grand = totals.reduce((sum, value) => sum + value, 0) || 1;
  const legend = el("div", { class: "legend" }, ...phases.map((phase, which) => {
    const share = (phase.values.reduce((sum, value) => sum + value, 0) / grand) * 100;
    return el("span", {}, swatch(color(which)), `${phase.name} ${share < 1 ? share.toFixed(1) : Math.round(share)} %`);
  }));
  picture.setAttribute("aria-label", "Seconds of each step by phase");
  return el("div", { class: "panel whole-row" }, el("div", { class: "chart-head" }, el("h3", {}, "Time per step"), el("span", { class: "note" }, "seconds, by phase")), legend, picture);
}

function resultBars(evaluations) {
  const scores = new Map();
  evaluations.forEach((one) => one.bars.forEach((bar) => scores.set(bar.key, bar.name)));
  const width = 1180;
  const height = 270;
  const top = 18;
  const bottom = height - 34;
  const slot = (width - 40) / scores.size;
  const bar = Math.min(46, (slot * 0.78) / evaluations.length);
  const y = (value) => bottom - value * (bottom - top);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    picture.append(svg("line", { class: "gridline", x1: 40, x2: width, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { x: 34, y: y(value) + 4, "text-anchor": "end" }, `${value * 100}%`));
  }
  [...scores].forEach(([key, name], place) => {
    const middle = 40 + slot * (place + 0.5);
    evaluations.forEach((one, index) => {
      const found = one.bars.find((entry) => entry.key === key);
      if (!found) return;
      const left = middle + (index - evaluations.length / 2) * bar;
      const rect = svg("rect", { x: left + 1.5, y: y(found.value), width: bar - 3, height: Math.max(1, bottom - y(found.value)), rx: 2, style: `fill:${pointColor(index, evaluations.length)}` });
      rect.append(svg("title", {}, `${one.label}: ${name} ${(found.value * 100).toFixed(1)} %`));
      picture.append(rect, svg("text", { class: "number", x: left + bar / 2, y: y(found.value) - 5, "text-anchor": "middle" }, (found.value * 100).toFixed(bar < 30 ? 0 : 1)));
    });
    picture.append(svg("text", { class: "category", x: middle, y: bottom + 21, "text-anchor": "middle" }, name));
  });
  picture.setAttribute("aria-label", evaluations.map((one) => `${one.label}: ${one.bars.map((entry) => `${entry.name} ${(entry.value * 100).toFixed(1)} percent`).join(", ")}`).join(". "));
  const legend = el("div", { class: "legend" }, ...evaluations.map((one, index) => el("span", {}, swatch(pointColor(index, evaluations.length)), one.label + (one.questions ? ` (${one.questions} questions)` : ""))));
  return el("div", { class: "panel" }, legend, el("div", { class: "scroll" }, picture));
}

function pointColor(index, count) {
  // Early points pale, the last one in full colour.
  return count === 1 ? "var(--c0)" : `color-mix(in oklab, var(--c0) ${Math.round(28 + (72 * index) / (count - 1))}%, var(--panel))`;
}
