// Calls of the server: every failure becomes one sentence; a missing token asks for it and tries again.
import { byId } from "./dom.js";

const OWN = { "X-Rsgrpo": "1" };

export class CallError extends Error {}

async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answers with status ${response.status}`;
  }
}

let asking = null;

// One dialog, however many calls wait for it.
function login() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("login");
    const submit = async (event) => {
      event.preventDefault();
      const body = JSON.stringify({ token: byId("token").value });
      const headers = { ...OWN, "Content-Type": "application/json" };
      const response = await fetch("/api/login", { method: "POST", headers, body });
      if (!response.ok) {
        byId("login-note").textContent = await sentence(response);
        return;
      }
      byId("login-form").removeEventListener("submit", submit);
      dialog.close();
      asking = null;
      resolve();
    };
    byId("login-form").addEventListener("submit", submit);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.showModal();
  });
  return asking;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...OWN, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("the server cannot be reached; see that it still runs");
  }
  if (response.status === 401) {
    await login();
    return call(path, options);
  }
  if (!response.ok) throw new CallError(await sentence(response));
  return response;
}

export async function get(path) {
  return (await call(path)).json();
}

export async function post(path, document) {
  return (await call(path, asJson(document))).json();
}

export async function remove(path) {
  return (await call(path, { method: "DELETE" })).json();
}

function asJson(document) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(document) };
}

// Server-sent events of a call; onEvent gets the name and the document of each.
export async function stream(path, document, onEvent, signal) {
  const response = await call(path, { ...(document ? asJson(document) : {}), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = lines.find((line) => line.startsWith("data: "))?.slice(6);
      if (name && data) onEvent(name, JSON.parse(data));
    }
  }
}

// Sends a file; fetch does not tell how far it is.
export function upload(file, onShare) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/documents?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("X-Rsgrpo", "1");
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onShare(event.loaded / event.total));
    request.addEventListener("error", () => reject(new CallError("the file could not be sent; see that the server still runs")));
    request.addEventListener("load", async () => {
      if (request.status === 202) resolve(request.response);
      else if (request.status === 401) {
        await login();
        upload(file, onShare).then(resolve, reject);
      } else reject(new CallError(request.response?.error?.message ?? `the server answers with status ${request.status}`));
    });
    request.send(file);
  });
}
