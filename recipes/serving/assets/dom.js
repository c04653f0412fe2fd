// Elements. What pages, people and the model wrote only ever becomes text nodes: nothing is parsed as markup.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

// Tells those who hear the page what others see.
export function announce(sentence) {
  byId("status").textContent = sentence;
}

export function score(value) {
  return value === null || value === undefined ? "" : value.toFixed(3).replace("-", "−");
}
