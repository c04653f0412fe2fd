// Earlier conversations: open, export, delete.
import { get, remove } from "./calls.js";
import { byId, el } from "./dom.js";

export async function showHistory(current, onOpen, onGone) {
  let found;
  try {
    found = await get("/api/history");
  } catch (error) {
    byId("history-note").textContent = error.message;
    return;
  }
  byId("history-note").textContent = found.conversations.length ? "" : "No question was asked yet.";
  byId("history").replaceChildren(
    ...found.conversations.map(({ conversation, title }) => {
      const path = `/api/history/${encodeURIComponent(conversation)}`;
      const is = conversation === current ? "true" : null;
      return el(
        "li",
        {},
        el("button", { type: "button", class: "open", title, "aria-current": is, onclick: () => onOpen(conversation) }, title),
        el("a", { href: `${path}?format=markdown`, download: "conversation.md", "aria-label": `Export ${title} as Markdown` }, "md"),
        el("a", { href: `${path}?format=json`, download: "conversation.json", "aria-label": `Export ${title} as JSON` }, "json"),
        el("button", { type: "button", class: "quiet", "aria-label": `Delete ${title}`, onclick: async () => {
          if (!confirm("Delete this conversation?")) return;
          await remove(path);
          onGone(conversation);
        } }, "×"),
      );
    }),
  );
}
