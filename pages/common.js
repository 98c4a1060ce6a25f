"use strict";
// Shared by both pages: the data inside the page, elements, colours, pixel maps. No library, nothing is loaded.

const $ = (id) => document.getElementById(id);

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") node.className = value;
    else if (name in node && name !== "style") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children); // strings become text, whatever is in them
  return node;
}

function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// The page's data: base64 of gzip of [length, JSON, arrays]; written by pack() in visualize.py.
async function unpack() {
  const bytes = Uint8Array.from(atob($("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const size = new DataView(buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const kinds = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array, float16: Uint16Array };
  for (const [name, { dtype, shape, at }] of Object.entries(data.arrays)) {
    const length = shape.reduce((a, b) => a * b, 1);
    let values = new kinds[dtype](buffer, 4 + size + at, length);
    if (dtype === "float16") values = Float32Array.from(values, float16);
    data[name] = values;
  }
  return data;
}

const VIRIDIS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"]
  .map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
const DIVERGING = ["2166ac", "92c5de", "f7f7f7", "f4a582", "b2182b"]
  .map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

// The colour at x in [0, 1] of a list of stops.
function colour(stops, x) {
  const at = Math.min(Math.max(x, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2);
  return stops[i].map((from, c) => Math.round(from + (stops[i + 1][c] - from) * (at - i)));
}

// Draw value(row, column) in [0, 1], one pixel each (CSS enlarges it); null is left empty.
function drawMap(canvas, rows, columns, value, stops = VIRIDIS) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  const table = Array.from({ length: 256 }, (_, i) => colour(stops, i / 255));
  for (let r = 0, p = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++, p += 4) {
      const x = value(r, c);
      if (x === null) continue;
      const [red, green, blue] = table[Math.round(255 * Math.min(Math.max(x, 0), 1))];
      image.data[p] = red;
      image.data[p + 1] = green;
      image.data[p + 2] = blue;
      image.data[p + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

// Let the headings of a table sort its rows; a cell's data-value, if it has one, is what is compared.
function sortable(table) {
  table.querySelectorAll("thead th").forEach((th, column) => {
    const button = el("button", { type: "button" }, th.textContent);
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "ascending" : "descending");
      const key = (tr) => {
        const text = tr.cells[column].dataset.value ?? tr.cells[column].textContent;
        const number = parseFloat(text.replaceAll(",", ""));
        return Number.isNaN(number) ? text : number;
      };
      const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1);
      const rows = [...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b)) * (down ? 1 : -1));
      table.tBodies[0].append(...rows);
    });
  });
}

function start(main) {
  document.querySelectorAll("table.sortable").forEach(sortable);
  unpack().then(main).catch((error) => {
    $("failure").textContent = `This page could not be drawn (${error}). A browser of 2023 or later is needed.`;
    console.error(error);
  });
}
