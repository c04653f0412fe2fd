// The page: a conversation in the middle, documents and history beside it, an opened page at the other side.
import { Turn } from "./answer.js";
import { get, stream } from "./calls.js";
import { chosenDocuments, leavesAllOut, startDocuments } from "./documents.js";
import { announce, byId, el } from "./dom.js";
import { showHistory } from "./history.js";
import { closeViewer } from "./viewer.js";

const turns = byId("turns");
const box = byId("question");
let conversation = "";
let lastPages = [];
let running = null;

function refreshHistory() {
  return showHistory(conversation, openConversation, (gone) => (gone === conversation ? begin() : refreshHistory()));
}

function welcome() {
  turns.replaceChildren(el("p", { class: "note" }, "Drop documents at the side, then ask. The answer names the pages that it draws on."));
}

function setPages(pages) {
  lastPages = pages;
  byId("same-label").hidden = pages.length === 0;
  if (!pages.length) byId("same-pages").checked = false;
}

function begin() {
  running?.abort();
  conversation = "";
  setPages([]);
  closeViewer();
  welcome();
  refreshHistory();
  box.focus();
}

async function openConversation(key) {
  running?.abort();
  const found = await get(`/api/history/${encodeURIComponent(key)}`);
  conversation = key;
  setPages([]);
  turns.replaceChildren();
  for (const { question, answer, problem, state } of found.turns) {
    const turn = new Turn(question, ask);
    turns.append(turn.node);
    if (answer) {
      turn.finish(answer);
      setPages(answer.pages);
    } else turn.fail(problem || `it ${state === "asking" ? "is being answered elsewhere" : "was not answered"}`);
  }
  byId("side").classList.remove("open");
  turns.scrollTop = turns.scrollHeight;
  refreshHistory();
}

function isAtEnd() {
  return turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80;
}

async function ask(question) {
  if (running) return;
  if (!conversation) turns.replaceChildren();
  const turn = new Turn(question, ask);
  turns.append(turn.node);
  turn.node.scrollIntoView({ block: "start" });
  const control = new AbortController();
  running = control;
  byId("stop").hidden = false;
  byId("send").disabled = true;
  const request = { question, conversation, num_pages: Number(byId("num-pages").value), documents: chosenDocuments() };
  if (byId("same-pages").checked) request.pages = lastPages.map((page) => page.key);
  let isOver = false;
  const heard = {
    turn: (event) => (conversation = event.conversation),
    waiting: (event) => turn.wait(event.ahead),
    pages: (event) => turn.showPages(event),
    text: (event) => turn.write(event),
    answered: (event) => {
      isOver = true;
      turn.finish(event);
      setPages(event.pages);
    },
    problem: (event) => {
      isOver = true;
      turn.fail(event.error.message);
    },
  };
  try {
    await stream("/api/ask", request, (name, event) => {
      const follows = isAtEnd();
      heard[name]?.(event);
      if (follows) turns.scrollTop = turns.scrollHeight;
    }, control.signal);
    if (!isOver) turn.fail("The server broke off; the question is in the history.");
  } catch (error) {
    turn.fail(error.name === "AbortError" ? "It was stopped." : error.message);
  } finally {
    if (running === control) running = null;
    byId("stop").hidden = true;
    byId("send").disabled = false;
    refreshHistory();
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = box.value.trim();
  if (!question || running) return;
  if (leavesAllOut() && !byId("same-pages").checked) return announce("No document is ticked; tick one, then ask.");
  box.value = "";
  ask(question);
});
box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask").requestSubmit();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", begin);
byId("viewer-close").addEventListener("click", closeViewer);
byId("menu").addEventListener("click", () => {
  const isOpen = byId("side").classList.toggle("open");
  byId("menu").setAttribute("aria-expanded", String(isOpen));
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("login").open) return;
  if (closeViewer()) return;
  byId("side").classList.remove("open");
  byId("menu").setAttribute("aria-expanded", "false");
});

welcome();
box.focus();
await startDocuments();
await refreshHistory();
