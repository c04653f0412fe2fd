// The list of documents: dropped ones with their progress, those that are there, which of them are asked.
import { get, remove, stream, upload } from "./calls.js";
import { announce, byId, el } from "./dom.js";

const unchecked = new Set();
let names = [];

// The documents that a question is asked of; none: all.
export function chosenDocuments() {
  return names.some((name) => unchecked.has(name)) ? names.filter((name) => !unchecked.has(name)) : [];
}

// Whether every document is left out, which the server would take for all of them.
export function leavesAllOut() {
  return names.length > 0 && names.every((name) => unchecked.has(name));
}

function showScope() {
  const chosen = chosenDocuments();
  byId("scope").textContent = leavesAllOut() ? "of no document: tick one"
    : chosen.length ? `of ${chosen.length} of ${names.length} documents` : "";
}

function entry(found) {
  const box = el("input", { type: "checkbox", onchange: (event) => {
    if (event.target.checked) unchecked.delete(found.name);
    else unchecked.add(found.name);
    showScope();
  } });
  box.checked = !unchecked.has(found.name);
  const pages = `${found.num_pages} ${found.num_pages === 1 ? "page" : "pages"}`;
  const item = el("li", {}, el("label", {}, box, el("span", {}, found.name)), el("span", { class: "note" }, pages));
  if (found.can_remove) {
    const label = `Remove ${found.name}`;
    item.append(el("button", { type: "button", class: "quiet", "aria-label": label, onclick: async (event) => {
      if (!confirm(`Remove ${found.name} from the index?`)) return;
      event.target.disabled = true;
      await told(() => remove(`/api/documents?name=${encodeURIComponent(found.name)}`));
      await showDocuments();
    } }, "Remove"));
  }
  return item;
}

async function told(work) {
  try {
    return await work();
  } catch (error) {
    byId("documents-note").textContent = error.message;
    return null;
  }
}

export async function showDocuments() {
  const found = await told(() => get("/api/documents"));
  if (!found) return;
  names = found.documents.map((each) => each.name);
  for (const name of unchecked) if (!names.includes(name)) unchecked.delete(name);
  byId("documents").replaceChildren(...found.documents.map(entry));
  byId("documents-note").textContent = names.length ? "" : "There is no document yet.";
  showScope();
  return found;
}

function progressItem(name) {
  const state = el("span", { class: "note" }, "is sent");
  const bar = el("progress", { max: "1", value: "0", "aria-label": `${name} on its way` });
  const item = el("li", {}, el("span", { class: "name" }, name), state, bar);
  byId("uploads").append(item);
  return {
    show(words, share) {
      state.textContent = words;
      if (share === null) bar.removeAttribute("value");
      else bar.value = share;
    },
    end(words, isBad) {
      bar.remove();
      state.textContent = words;
      state.className = isBad ? "problem" : "note";
      announce(`${name}: ${words}`);
      if (isBad) item.append(el("button", { type: "button", class: "quiet", "aria-label": `Dismiss ${name}`, onclick: () => item.remove() }, "Dismiss"));
      else setTimeout(() => item.remove(), 8000);
    },
  };
}

async function follow(key, item) {
  let last = null;
  await stream(`/api/documents/${key}/progress`, null, (_, state) => {
    last = state;
    if (state.state === "waiting") item.show("waits", null);
    else if (state.state === "rendering" || state.state === "embedding") item.show(state.message || state.state, state.share);
  });
  if (last?.state === "done") item.end(last.message, false);
  else item.end(last?.message || "the server broke off", true);
  await showDocuments();
}

async function send(file) {
  const item = progressItem(file.name);
  try {
    const state = await upload(file, (share) => item.show("is sent", share));
    await follow(state.key, item);
  } catch (error) {
    item.end(error.message, true);
  }
}

export async function startDocuments() {
  const files = byId("files");
  files.addEventListener("change", () => {
    const chosen = [...files.files];
    files.value = "";
    chosen.forEach(send);
  });
  addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    document.body.classList.remove("dragging");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    [...event.dataTransfer.files].forEach(send);
  });
  const found = await showDocuments();
  for (const state of found?.uploads ?? []) follow(state.key, progressItem(state.name));
}
