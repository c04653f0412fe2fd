// A question and its answer: pages found, sections as they are written, evidence that opens its page.
import { announce, el, score } from "./dom.js";
import { openPage } from "./viewer.js";

const WAITING = "is waiting";

function pageButton(page) {
  const label = `Page ${page.page_number} of ${page.document}${page.score === null ? "" : `, score ${score(page.score)}`}`;
  const numbers = [`[${page.number}]`, score(page.score)].filter(Boolean).join(" · ");
  const left = page.is_shown ? null : el("span", {}, "left out by the filter");
  return el(
    "button",
    { type: "button", "aria-label": `${label}. Opens the page.`, class: page.is_shown ? null : "left-out",
      onclick: (event) => openPage(page, null, event.currentTarget) },
    el("img", { src: `${page.image}?size=small`, alt: "", loading: "lazy" }),
    el("span", { class: "name" }, page.document),
    el("span", {}, `page ${page.page_number}`),
    el("span", {}, numbers),
    left,
  );
}

function evidenceLine(evidence, page) {
  if (!page) return el("p", { class: "nothing" }, `[${evidence.number}] ${evidence.text} (there is no such page)`);
  if (!evidence.is_relevant) return el("p", { class: "nothing" }, `[${evidence.number}] ${evidence.text}`);
  return el(
    "button",
    { type: "button", onclick: (event) => openPage(page, evidence.text, event.currentTarget) },
    el("span", { class: "source" }, `[${evidence.number}] ${page.document}, page ${page.page_number}`),
    evidence.text,
  );
}

export class Turn {
  constructor(question, onAgain) {
    this.found = el("div", { class: "found", role: "group", "aria-label": "Pages found" });
    this.remarks = el("div", { class: "note" });
    this.state = el("p", { class: "note" }, "Pages are looked for …");
    this.answerText = el("div", { class: "text" });
    this.insufficient = el("p", { class: "insufficient", hidden: true }, "The pages are insufficient to answer.");
    this.answer = el("div", { class: "answer", hidden: true }, el("h3", {}, "Answer"), this.insufficient, this.answerText);
    this.evidence = el("div", { class: "evidence", hidden: true, role: "group", "aria-label": "Evidence" });
    this.sections = el("div", {});
    this.spent = el("p", { class: "note" });
    const live = el("div", { class: "turn", "aria-live": "polite", "aria-busy": "true" },
      this.state, this.answer, this.evidence, this.sections);
    this.live = live;
    this.onAgain = onAgain;
    this.question = question;
    this.texts = new Map();
    this.node = el("article", { class: "turn" }, el("h2", { class: "asked" }, question), this.found, this.remarks, live, this.spent);
  }

  showPages({ pages, remarks, seconds }) {
    this.found.replaceChildren(...pages.map(pageButton));
    this.remarks.replaceChildren(...(remarks ?? []).map((remark) => el("p", {}, remark)));
    if (seconds !== undefined) {
      const found = pages.length === 1 ? "1 page" : `${pages.length} pages`;
      this.state.textContent = `${found} found in ${seconds.toFixed(2)} s; reading …`;
      announce(`${found} found`);
    }
  }

  wait(ahead) {
    this.state.textContent = ahead ? `Your question ${WAITING}: ${ahead} before it.` : `Your question ${WAITING}.`;
  }

  write({ section, text, is_answer: isAnswer }) {
    this.state.hidden = true;
    let place = this.texts.get(section);
    if (!place) {
      this.live.querySelectorAll(".writing").forEach((other) => other.classList.remove("writing"));
      place = isAnswer ? this.answerText : el("div", { class: "text" });
      this.texts.set(section, place);
      if (isAnswer) this.answer.hidden = false;
      else this.sections.append(el("details", { open: true }, el("summary", {}, section || "other words"), place));
      place.classList.add("writing");
    }
    place.append(text);
  }

  finish(answer) {
    this.state.hidden = true;
    this.showPages({ pages: answer.pages, remarks: [...this.remarks.children].map((node) => node.textContent) });
    this.answer.hidden = false;
    this.answerText.textContent = answer.answer;
    this.answerText.classList.remove("writing");
    this.insufficient.hidden = !answer.is_insufficient;
    const byNumber = new Map(answer.pages.map((page) => [page.number, page]));
    this.evidence.replaceChildren(
      el("h3", {}, "Evidence"),
      ...answer.evidence.map((evidence) => evidenceLine(evidence, byNumber.get(evidence.number))),
    );
    this.evidence.hidden = answer.evidence.length === 0;
    const others = Object.entries(answer.sections).filter(([name]) => name !== answer.answer_section);
    this.sections.replaceChildren(
      ...others.map(([name, text]) => el("details", {}, el("summary", {}, name), el("div", { class: "text" }, text.trim()))),
    );
    const { prompt_tokens: prompt, response_tokens: response, total_seconds: seconds } = answer.spent;
    const remarks = [...answer.problems];
    if (answer.is_cut) remarks.push("the answer was cut at its longest");
    this.spent.replaceChildren(
      `${prompt.toLocaleString("en")} + ${response.toLocaleString("en")} tokens, ${seconds.toFixed(1)} s`,
      ...(remarks.length ? [el("span", { class: "problem" }, ` · ${remarks.join("; ")}`)] : []),
    );
    this.live.setAttribute("aria-busy", "false");
    announce(answer.is_insufficient ? "The pages are insufficient to answer." : "The answer is there.");
  }

  fail(sentence) {
    this.live.querySelectorAll(".writing").forEach((other) => other.classList.remove("writing"));
    this.state.hidden = false;
    const again = el("button", { type: "button", onclick: () => this.onAgain(this.question) }, "Ask again");
    this.state.replaceChildren(el("span", { class: "problem", role: "alert" }, `${sentence} `), again);
    this.live.setAttribute("aria-busy", "false");
  }
}
