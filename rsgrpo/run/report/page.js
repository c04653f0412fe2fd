// Put the page together from the embedded data.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = preferred.matches ? "dark" : "light";
  preferred.addEventListener("change", (event) => { root.dataset.theme = event.matches ? "dark" : "light"; });
  byId("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; });

  byId("cards").append(...data.cards.map((card) => el("div", { class: "card", "data-trend": card.trend }, el("p", { class: "label" }, card.label), el("p", { class: "value" }, card.value), el("p", { class: "note" }, card.note))));
  byId("facts").append(...data.facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))));

  const shown = [];
  const reveal = (id, label) => { byId(id).hidden = false; shown.push([id, label]); };
  if (data.evaluations.some((one) => one.bars.length)) {
    reveal("results", "Results");
    byId("bars").append(resultBars(data.evaluations));
  }

  const titles = { rewards: "Rewards and scopes", policy: "Policy and engine", sft: "Supervised stage", retriever: "Page retriever" };
  const drawCharts = () => {
    const smoothing = Number(byId("smoothing").value);
    byId("smoothing-value").textContent = smoothing.toFixed(2);
    const parts = [];
    for (const [section, title] of Object.entries(titles)) {
      const charts = data.charts.filter((chart) => chart.section === section).map((chart) => lineChart(chart, smoothing, ...(section === "rewards" ? [600, 270] : [])));
      if (section === "policy" && data.times.steps) charts.push(stackedChart(data.times));
      const alarms = section === "rewards" && data.alarms.length ? [el("ul", { class: "alarms" }, ...data.alarms.map((text) => el("li", {}, text)))] : [];
      if (charts.length) parts.push(el("p", { class: "group-title" }, title), ...alarms, el("div", { class: section === "rewards" ? "grid wide" : "grid" }, ...charts));
    }
    byId("charts").replaceChildren(...parts);
    if (byId("all").open) drawAll();
  };
  const all = data.charts.filter((chart) => chart.section === "all");
  const drawAll = () => {
    const wanted = byId("filter").value.trim().toLowerCase();
    const smoothing = Number(byId("smoothing").value);
    const found = all.filter((chart) => `${chart.note} ${chart.title}`.toLowerCase().includes(wanted));
    byId("all-charts").replaceChildren(...found.map((chart) => lineChart(chart, smoothing, 300, 160)));
  };
  if (data.charts.length || data.times.steps) {
    reveal("curves", "Training");
    byId("all").hidden = all.length === 0;
    byId("all").addEventListener("toggle", () => { if (byId("all").open) drawAll(); });
    byId("filter").addEventListener("input", drawAll);
    byId("smoothing").addEventListener("input", drawCharts);
    drawCharts();
  }
  if (data.rollouts.groups.length) {
    reveal("rollouts", "Rollouts");
    if (!data.rollouts.rewards.length) byId("rollouts").querySelector("h2").textContent = "Responses";
    rolloutBrowser(data.rollouts, byId("browser"));
  }
  byId("nothing").hidden = shown.length > 0;
  byId("nav").append(...shown.map(([id, label]) => el("a", { href: `#${id}` }, label)));
  if (/^#rollouts/.test(location.hash)) byId("rollouts").scrollIntoView();
})();
