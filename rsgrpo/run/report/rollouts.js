// The rollout browser: one group at a time, every token with its credit and where it came from.
function rolloutBrowser(data, host) {
  const { sections, rewards, images, groups, omitted } = data;
  const colour = (name) => `var(--s${sections.indexOf(name) % 8})`; // there are eight; more sections share them
  const weights = new Map(rewards.map((reward) => [reward.name, reward.weight]));
  const active = new Set(rewards.map((reward) => reward.name));
  const state = { place: initialPlace(groups), view: "credit" };
  const body = el("div");
  const toolbar = el("div");
  host.replaceChildren(toolbar, body);

  const go = (place) => {
    if (place < 0 || place >= groups.length) return;
    state.place = place;
    history.replaceState(null, "", `#rollouts/${place}`);
    draw();
  };
  const draw = () => {
    tip.hide();
    const group = groups[state.place];
    const hasCredit = group.rollouts.some((one) => one.positive.length);
    toolbar.replaceChildren(chooser(groups, state.place, go), legendRow(hasCredit), ...(hasCredit ? [toggleRow()] : []));
    const show = hasCredit ? state.view : "section";
    const isShort = group.rollouts.length > 1 && group.rollouts.every((one) => one.text.length < 700);
    const siblings = el("div", { class: isShort ? "siblings short" : "siblings" }, ...group.rollouts.map((one) => siblingPanel(group, one, show)));
    body.replaceChildren(el("div", { class: "group" }, sidePanel(group), siblings), rewardTable(group));
    if (omitted) body.append(el("p", { class: "key" }, `${omitted} more recorded groups are in rollouts.jsonl.`));
  };

  function legendRow(hasCredit) {
    const row = el("div", { class: "key" }, ...sections.map((name) => el("span", {}, swatch(`rgb(${colour(name)} / .7)`), name)));
    if (hasCredit) {
      const choice = (view, label) => el("button", { type: "button", "aria-pressed": String(state.view === view), onclick: () => { state.view = view; draw(); } }, label);
      row.prepend(el("span", { class: "segmented", role: "group", "aria-label": "Colour tokens by" }, choice("credit", "Credit"), choice("section", "Sections")));
      row.append(el("span", {}, "lowered", el("span", { class: "ramp", style: "background:linear-gradient(to right, rgb(var(--bad) / .8), transparent 50%, rgb(var(--good) / .8))" }), "raised"));
    }
    row.append(el("span", {}, el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " question, ", el("kbd", {}, "["), " ", el("kbd", {}, "]"), " step; inside a response arrows walk through its tokens"));
    return row;
  }

  function toggleRow() {
    const row = el("div", { class: "toggles", role: "group", "aria-label": "Rewards whose credit is shown" }, el("span", { class: "control" }, "Credit of"));
    for (const reward of rewards) {
      const box = el("input", { type: "checkbox", onchange: () => { if (!active.delete(reward.name)) active.add(reward.name); draw(); } });
      box.checked = active.has(reward.name);
      row.append(el("label", { title: reward.scope }, box, `${reward.name} ×${number(reward.weight)}`));
    }
    const only = (names) => () => { active.clear(); names.forEach((name) => active.add(name)); draw(); };
    row.append(el("button", { type: "button", onclick: only(rewards.map((one) => one.name)) }, "All"), el("button", { type: "button", onclick: only([]) }, "None"));
    return row;
  }

  // What each reward adds to a token's P - Q, up to the step's common factor 1/W: w_k A_ik / N_k.
  function shares(group, rollout) {
    return rollout.rewards.map((reward) => {
      const length = group.scopeTokens[reward.name] || group.rollouts.reduce((sum, one) => sum + scopeLength(one, reward.name), 0);
      return length ? ((weights.get(reward.name) ?? 1) * reward.advantage) / length : 0;
    });
  }

  function streams(group, rollout) {
    if (rewards.every((reward) => active.has(reward.name))) return [rollout.positive, rollout.negative];
    const positive = new Array(rollout.positive.length).fill(0);
    const negative = new Array(rollout.negative.length).fill(0);
    const parts = shares(group, rollout);
    rollout.rewards.forEach((reward, which) => {
      if (!active.has(reward.name)) return;
      for (const [start, stop] of reward.spans) {
        for (let token = start; token < stop; token += 1) {
          if (parts[which] > 0) positive[token] += parts[which];
          else negative[token] -= parts[which];
        }
      }
    });
    return [positive, negative];
  }

  function siblingPanel(group, rollout, show) {
    const characters = Array.from(rollout.text); // offsets count code points, JavaScript's own count UTF-16 units
    const [positive, negative] = streams(group, rollout);
    let strongest = 0;
    for (const one of group.rollouts) for (const stream of streams(group, one)) for (const value of stream) strongest = Math.max(strongest, value);
    const text = el("div", { class: `response${characters.length > 2500 ? " folded" : ""}${show === "section" ? " by-section" : ""}`, tabindex: "0", "aria-label": `Response ${rollout.index + 1}` });
    const nodes = [];
    if (rollout.starts.length && rollout.starts[0] > 0) text.append(characters.slice(0, rollout.starts[0]).join(""));
    rollout.starts.forEach((start, token) => {
      const stop = token + 1 < rollout.starts.length ? rollout.starts[token + 1] : characters.length;
      const piece = characters.slice(start, stop).join("");
      const isEnd = start >= characters.length;
      if (!piece && !isEnd) return; // the tail of a character: the token that began it stands for both
      const section = sectionAt(rollout.sections, start);
      const node = el("span", { class: isEnd ? "token end" : "token", "data-section": isEnd ? undefined : section }, isEnd ? "end" : piece);
      if (section && !isEnd) node.style.setProperty("--section", colour(section));
      if (show === "credit" && strongest > 0) node.style.background = creditPaint(positive[token] || 0, negative[token] || 0, strongest);
      node.dataset.token = token;
      nodes.push(node);
      text.append(node);
    });
    if (!rollout.starts.length) text.append(rollout.text);
    const explain = (node) => {
      const box = node.getClientRects()[0];
      tip.show(box.left, box.bottom - 8, ...tokenTip(group, rollout, Number(node.dataset.token), node.textContent));
    };
    text.addEventListener("pointerover", (event) => { if (event.target.dataset.token) explain(event.target); });
    text.addEventListener("pointerleave", () => tip.hide());
    walkTokens(text, nodes, explain);
    return el("article", { class: "panel sibling" }, siblingHead(group, rollout), text);
  }

  function siblingHead(group, rollout) {
    const head = el("div", { class: "head" }, el("strong", {}, group.rollouts.length > 1 ? `Response ${rollout.index + 1}` : "Response"));
    const valued = rollout.rewards.filter((reward) => reward.value !== null);
    if (rollout.positive.length) {
      const total = [...weights].reduce((sum, [name, weight]) => {
        const values = valued.filter((reward) => reward.name === name).map((reward) => reward.value);
        return values.length ? sum + (weight * values.reduce((a, b) => a + b, 0)) / values.length : sum;
      }, 0);
      head.append(el("span", { title: "weighted sum of the rewards" }, `Σ ${number(total)}`));
    }
    for (const reward of valued.filter((one) => !one.image)) head.append(el("span", {}, `${reward.name} ${number(reward.value)}`));
    head.append(el("span", { class: rollout.finish === "stop" ? "badge" : "badge cut" }, rollout.finish === "stop" ? `${rollout.starts.length} tokens` : `cut at ${rollout.starts.length} tokens`));
    return head;
  }

  function tokenTip(group, rollout, token, shown) {
    const lines = [el("div", { class: "head mono" }, `${shown === "end" && token === rollout.starts.length - 1 ? "end of sequence" : JSON.stringify(shown)} · token ${token}`)];
    if (!rollout.positive.length) return lines;
    const [up, down] = [rollout.positive[token], rollout.negative[token]];
    lines.push(el("div", {}, `raised by P = ${number(up)}, lowered by Q = ${number(down)}`));
    const touching = rollout.rewards.filter((reward) => reward.spans.some(([start, stop]) => token >= start && token < stop));
    if (!touching.length) return [...lines, el("div", {}, "in no reward's scope")];
    const rows = touching.map((reward) => el("tr", {}, el("td", {}, rewardLabel(reward)), el("td", {}, number(reward.value)), el("td", {}, signed(reward.advantage)), el("td", {}, `×${number(weights.get(reward.name) ?? 1)}`)));
    lines.push(el("table", {}, el("tr", {}, ...["reward", "value", "advantage", "weight"].map((name) => el("th", {}, name))), ...rows));
    return lines;
  }

  function sidePanel(group) {
    const pages = el("div", { class: "pages" }, ...group.images.map((image) => {
      const caption = el("figcaption", { title: image.path }, `[${image.number}] ${image.path.split("/").pop()}`);
      if (image.picture === null) return el("figure", {}, el("div", { class: "missing" }, "image not found"), caption);
      const picture = el("img", { src: images[image.picture], alt: `Page ${image.number}`, tabindex: "0", role: "button", onload: (event) => event.target.classList.toggle("tiny", event.target.naturalWidth < 160) });
      const zoom = () => enlarge(images[image.picture], image.path);
      picture.addEventListener("click", zoom);
      picture.addEventListener("keydown", (event) => { if (event.key === "Enter") zoom(); });
      return el("figure", {}, picture, caption);
    }));
    const gold = el("div", { class: "response by-section" });
    let done = 0;
    const characters = Array.from(group.gold);
    for (const [name, start, stop] of [...group.goldSections].sort((a, b) => a[1] - b[1])) {
      if (start < done) continue;
      gold.append(characters.slice(done, start).join(""), el("span", { class: "token", "data-section": name, style: `--section:${colour(name)}` }, characters.slice(start, stop).join("")));
      done = stop;
    }
    gold.append(characters.slice(done).join(""));
    const parts = [el("p", { class: group.question.length > 400 ? "question long" : "question" }, group.question), pages];
    parts.push(el("p", { class: "small" }, "Accepted answers"), el("p", {}, group.answers.join("  ·  ") || "–"));
    if (!group.isSufficient) parts.push(el("p", {}, el("span", { class: "badge" }, "the pages do not hold the answer")));
    if (group.gold) parts.push(el("p", { class: "small" }, "Gold response"), gold);
    return el("aside", { class: "panel side" }, ...parts);
  }

  function rewardTable(group) {
    const keys = new Map();
    group.rollouts.forEach((one) => one.rewards.forEach((reward) => keys.set(rewardLabel(reward), reward)));
    if (!keys.size) return el("div");
    const hasCredit = group.rollouts.some((one) => one.positive.length);
    const head = el("tr", {}, el("th", {}, ""), ...group.rollouts.map((one) => el("th", { scope: "col" }, group.rollouts.length > 1 ? String(one.index + 1) : "score")));
    const rows = [...keys].map(([label, kind]) => el("tr", {}, el("th", { scope: "row" }, label, hasCredit ? el("span", { class: "note" }, `×${number(weights.get(kind.name) ?? 1)}`) : null), ...group.rollouts.map((one) => {
      const reward = one.rewards.find((entry) => rewardLabel(entry) === label);
      if (!reward) return el("td", {}, "–");
      const tone = reward.advantage > 0 ? "advantage good" : reward.advantage < 0 ? "advantage bad" : "advantage";
      return el("td", {}, number(reward.value), hasCredit ? el("span", { class: tone }, reward.found ? signed(reward.advantage) : `${signed(reward.advantage)} no scope`) : null);
    })));
    const title = hasCredit ? "Rewards of the group: value, and advantage against the siblings" : "Scores";
    return el("div", { class: "panel table-panel" }, el("h3", {}, title), el("div", { class: "scroll" }, el("table", { class: "rewards" }, el("thead", {}, head), el("tbody", {}, ...rows))));
  }

  document.getElementById("rollouts").addEventListener("keydown", (event) => {
    if (event.target.matches("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = { ArrowLeft: () => state.place - 1, ArrowRight: () => state.place + 1, "[": () => otherStep(groups, state.place, -1), "]": () => otherStep(groups, state.place, 1) }[event.key];
    if (!target) return;
    event.preventDefault();
    go(target());
    if (!document.activeElement || document.activeElement === document.body) document.getElementById("rollouts").focus({ preventScroll: true });
  });
  draw();
}

function initialPlace(groups) {
  const asked = /^#rollouts\/(\d+)$/.exec(location.hash);
  if (asked && Number(asked[1]) < groups.length) return Number(asked[1]);
  // The last training step says most about what was rewarded.
  const last = groups.findLastIndex((group) => group.rollouts.some((one) => one.positive.length));
  return last < 0 ? 0 : groups.findIndex((group) => group.stage === groups[last].stage && group.step === groups[last].step);
}

function chooser(groups, place, go) {
  const here = groups[place];
  const stages = [...new Set(groups.map((group) => group.stage))];
  const steps = [...new Set(groups.filter((group) => group.stage === here.stage).map((group) => group.step))];
  const firstOf = (stage, step) => groups.findIndex((group) => group.stage === stage && (step === undefined || group.step === step));
  const option = (value, label, selected) => { const node = el("option", { value }, label); node.selected = selected; return node; };
  const stageBox = el("select", { onchange: (event) => go(firstOf(stages[event.target.selectedIndex])) }, ...stages.map((stage) => option(stage, stage.replaceAll("_", " "), stage === here.stage)));
  const stepBox = el("select", { onchange: (event) => go(firstOf(here.stage, steps[event.target.selectedIndex])) }, ...steps.map((step) => option(step, String(step), step === here.step)));
  const chips = el("div", { class: "chips" }, ...groups.map((group, index) => [group, index]).filter(([group]) => group.stage === here.stage && group.step === here.step).map(([group, index]) => el("button", { type: "button", title: group.question.slice(0, 300), "aria-current": String(index === place), onclick: () => go(index) }, group.id)));
  const button = (label, name, target) => { const node = el("button", { type: "button", "aria-label": name, onclick: () => go(target) }, label); node.disabled = target < 0 || target >= groups.length; return node; };
  return el("div", { class: "toolbar" }, el("label", { class: "control" }, "Stage", stageBox), steps.length > 1 ? el("label", { class: "control" }, "Step", stepBox) : null, chips, el("span", { class: "spacer" }), button("←", "Previous question", place - 1), button("→", "Next question", place + 1));
}

function otherStep(groups, place, direction) {
  // Same position in the neighbouring step.
  const key = (group) => `${group.stage}/${group.step}`;
  const blocks = [...new Set(groups.map(key))];
  const which = blocks.indexOf(key(groups[place])) + direction;
  if (which < 0 || which >= blocks.length) return -1;
  const members = (name) => groups.map((group, index) => [key(group), index]).filter(([entry]) => entry === name).map(([, index]) => index);
  const offset = members(key(groups[place])).indexOf(place);
  const target = members(blocks[which]);
  return target[Math.min(offset, target.length - 1)];
}

function walkTokens(text, nodes, explain) {
  let current = -1;
  const leave = () => { nodes[current]?.classList.remove("current"); tip.hide(); };
  text.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !nodes.length) return;
    event.preventDefault();
    event.stopPropagation();
    leave();
    current = Math.max(0, Math.min(nodes.length - 1, current + move));
    nodes[current].classList.add("current");
    nodes[current].scrollIntoView({ block: "nearest" });
    explain(nodes[current]);
  });
  text.addEventListener("blur", leave);
}

function enlarge(source, caption) {
  const picture = el("img", { src: source, alt: caption, onload: (event) => event.target.classList.toggle("tiny", event.target.naturalWidth < 160) });
  const box = el("dialog", { "aria-label": caption, onclose: () => box.remove(), onclick: () => box.close() }, picture, el("p", { class: "key" }, caption));
  document.body.append(box);
  box.showModal();
}

function creditPaint(positive, negative, strongest) {
  // Square root: weak credit stays visible beside strong. Opposed credit shows both halves.
  const shade = (name, value) => `rgb(var(--${name}) / ${(0.62 * Math.sqrt(value / strongest)).toFixed(3)})`;
  if (positive > 0 && negative > 0) return `linear-gradient(to bottom, ${shade("good", positive)} 50%, ${shade("bad", negative)} 50%)`;
  if (positive > 0) return shade("good", positive);
  return negative > 0 ? shade("bad", negative) : "none";
}

function sectionAt(sections, character) {
  for (const [name, start, stop] of sections) if (character >= start && character < stop) return name;
  return undefined;
}

function scopeLength(rollout, name) {
  return rollout.rewards.filter((reward) => reward.name === name).reduce((sum, reward) => sum + reward.spans.reduce((total, [start, stop]) => total + stop - start, 0), 0);
}

function rewardLabel(reward) {
  return reward.image ? `${reward.name} [${reward.image}]` : reward.name;
}
