// A page at the side, with the source of a line of evidence marked as far as it is known.
import { post } from "./calls.js";
import { byId, el } from "./dom.js";

const NOTES = {
  response: "Marked: the place that the answer names.",
  words: "Marked: words of the line that stand in the page's text.",
  page: "Where on the page the line's source stands is not known; the whole page is framed.",
};

let opener = null;
let shown = 0;

export function closeViewer() {
  if (byId("viewer").hidden) return false;
  byId("viewer").hidden = true;
  byId("layout").classList.remove("with-viewer");
  if (opener?.isConnected) opener.focus();
  return true;
}

export async function openPage(page, line, from) {
  const own = ++shown;
  opener = from;
  const place = byId("viewer-page");
  const image = byId("viewer-image");
  place.querySelectorAll(".mark").forEach((mark) => mark.remove());
  place.classList.remove("framed");
  byId("viewer-title").textContent = `${page.document}, page ${page.page_number}`;
  byId("viewer-line").textContent = line ?? "";
  byId("viewer-line").hidden = !line;
  byId("viewer-note").textContent = page.title ? page.title : "";
  image.alt = `Page ${page.page_number} of ${page.document}`;
  image.src = page.image;
  image.onerror = () => {
    byId("viewer-note").textContent = "This page is no longer there; its document may have been removed.";
  };
  byId("layout").classList.add("with-viewer");
  byId("viewer").hidden = false;
  byId("viewer-close").focus();
  if (!line) return;
  let found = { boxes: [], origin: "page" };
  try {
    found = await post(`/api/pages/${page.key}/marks`, { text: line });
  } catch {
    // the page is shown all the same
  }
  if (own !== shown) return; // another page was opened meanwhile
  byId("viewer-note").textContent = NOTES[found.origin];
  place.classList.toggle("framed", found.origin === "page");
  for (const [left, top, right, bottom] of found.boxes) {
    const mark = el("div", { class: "mark" });
    mark.style.left = `${left * 100}%`;
    mark.style.top = `${top * 100}%`;
    mark.style.width = `${(right - left) * 100}%`;
    mark.style.height = `${(bottom - top) * 100}%`;
    place.append(mark);
  }
  place.querySelector(".mark")?.scrollIntoView({ block: "center" });
}
