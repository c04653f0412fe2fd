// Elements, numbers and the tooltip. Texts only ever become text nodes: nothing recorded is parsed as markup.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 10000) return Math.round(value).toLocaleString("en");
  if (size < 0.001) return value.toExponential(1).replace("-", "−").replace("e−", "e-").replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 3))).replace("-", "−");
}

function signed(value) {
  return value > 0 ? "+" + number(value) : number(value);
}

const tip = {
  show(x, y, ...content) {
    const box = document.getElementById("tip");
    box.replaceChildren(...content);
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const left = x + 16 + width > innerWidth ? Math.max(8, x - width - 16) : x + 16;
    const top = y + 18 + height > innerHeight ? Math.max(8, y - height - 14) : y + 18;
    box.style.left = left + "px";
    box.style.top = top + "px";
  },
  hide() {
    document.getElementById("tip").hidden = true;
  },
};

function swatch(color) {
  return el("span", { class: "swatch", style: `background:${color}` });
}
