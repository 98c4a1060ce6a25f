// A model's page. T tokens; L layers of H heads; maps hold the lower triangles of the attention weights, row by row.
start((data) => {
  const { config, tokens, scores } = data;
  const T = data.ids.length, L = config.n_layer, H = config.n_head, D = config.head_dim;
  const triangle = (T * (T + 1)) / 2, at = (i, j) => (i * (i + 1)) / 2 + j;
  const percent = (p) => (p >= 0.001 || p === 0 ? `${(100 * p).toFixed(1)} %` : p >= 1e-6 ? `${+(100 * p).toPrecision(1)} %` : "< 0.0001 %");

  // Text of a token with its spaces and line ends made visible; other control characters by number.
  const shown = (text) => text.replace(/ /g, "\u00b7").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) => `<U+${c.charCodeAt(0).toString(16)}>`);
  const brief = (text) => { const all = [...shown(text)]; return all.length > 24 ? all.slice(0, 23).join("") + "\u2026" : all.join(""); };
  const token = (i) => brief(tokens[data.ids[i]]);

  function bars(box, rows) { // [{label, value in [-1, 1], text, out}]
    box.replaceChildren(...rows.map(({ label, value, text, out }) => {
      const bar = el("i", { class: value < 0 ? "minus" : "" });
      bar.style.width = `${Math.min(100, 100 * Math.abs(value))}%`;
      return el("div", { class: out ? "bar out" : "bar" }, el("span", { class: "mono" }, label), el("span", {}, bar), el("span", {}, text));
    }));
  }
  function tint(node, share, name = "--hot") {
    node.style.background = `color-mix(in srgb, var(${name}) ${Math.round(70 * Math.min(1, Math.max(0, share)))}%, var(--panel))`;
  }
  function strip(box, count, label, choose) {
    const buttons = Array.from({ length: count }, (_, i) => el("button", { type: "button", class: "token" }, label(i)));
    buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
    box.replaceChildren(...buttons);
    return buttons;
  }
  const top10 = (ids, p, from) => {
    const n = data.arrays.lens_p.shape[2];
    return Array.from({ length: n }, (_, k) => ({ label: brief(tokens[ids[from * n + k]]), value: p[from * n + k], text: percent(p[from * n + k]) }));
  };

  // 1. Text
  const bits = (i) => data.surprisal[i - 1] / Math.LN2;
  const inStrip = strip($("strip"), T, token, chooseToken);
  for (let i = 1; i < T; i++) {
    tint(inStrip[i], bits(i) / 12);
    inStrip[i].title = `${bits(i).toFixed(2)} bits`;
  }
  function chooseToken(i) {
    inStrip.forEach((b, j) => b.setAttribute("aria-pressed", i === j));
    if (i === 0) {
      $("token-facts").replaceChildren(el("p", {}, "The end-of-text token stands before every document: the model starts from it."));
      $("token-bars").replaceChildren();
      return;
    }
    $("token-facts").replaceChildren(el("table", {}, ...[
      ["token", token(i)], ["place", i], ["surprisal", `${bits(i).toFixed(3)} bits`],
      ["its probability", percent(Math.exp(-data.surprisal[i - 1]))], ["rank", data.rank[i - 1].toLocaleString()],
      ["entropy of what was expected", `${(data.entropy[i - 1] / Math.LN2).toFixed(2)} bits`],
    ].map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", { class: "mono" }, String(value))))));
    bars($("token-bars"), top10(data.lens_ids, data.lens_p, L * T + i - 1));
  }

  // 2. Heads
  const weightAt = (head, i, j) => data.maps[head * triangle + at(i, j)] / 255;
  const names = Array.from({ length: L * H }, (_, h) => `${Math.floor(h / H)}.${h % H}`);
  const score = (name, h) => scores[name][Math.floor(h / H)][h % H];
  const headButtons = names.map((name, h) => {
    const canvas = el("canvas", {}), note = el("span", {}, "");
    drawMap(canvas, T, T, (i, j) => (j > i ? null : Math.sqrt(weightAt(h, i, j))));
    const button = el("button", { type: "button", class: "head", "aria-label": `head ${name}` }, canvas, name, note);
    button.addEventListener("click", () => chooseHead(h, true));
    return button;
  });
  function sortHeads() {
    const key = $("head-sort").value.replace("-", ""), up = $("head-sort").value.startsWith("-") ? 1 : -1;
    const order = names.map((_, h) => h);
    if (key) order.sort((a, b) => up * (score(key, a) - score(key, b)) || a - b);
    headButtons.forEach((b, h) => (b.lastChild.textContent = key ? ` ${score(key, h).toFixed(2)}` : ""));
    $("heads").replaceChildren(...order.map((h) => headButtons[h]));
  }
  $("head-sort").addEventListener("change", sortHeads);
  sortHeads();
  names.forEach((name, h) => $("head-table").tBodies[0].append(el("tr", {}, el("td", {}, name),
    ...["entropy", "distance", "previous", "first", "induction"].map((s) => el("td", { class: "n" }, score(s, h).toFixed(3))))));

  // 3. One head
  const steps = [
    ["scores", "scores", "Each query with each key: a dot product, large where what is looked for meets what is offered. Still every token meets every other."],
    ["scaled", "scaled", `The scores divided by the square root of the head's width (\u221a${D} = ${Math.sqrt(D).toFixed(2)}), so that softmax does not become too sharp.`],
    ["masked", "masked", "Keys behind the query are the future: they are shut out (minus infinity), in training as in use."],
    ["softmax", "softmax", "Each row becomes shares that add up to 1: the attention weights."],
    ["sum", "weighted sum", "The values, each times its weight, added up: what the head hands on for the chosen query. One row per key; the last row is the sum."],
  ];
  let head = 0, step = "softmax", query = T - 1;
  const slot = (h) => data.chosen.findIndex(([l, i]) => l * H + i === h);
  const vector = (name, h, i) => data[name].subarray((slot(h) * T + i) * D, (slot(h) * T + i + 1) * D);
  const dot = (a, b) => { let sum = 0; for (let d = 0; d < a.length; d++) sum += a[d] * b[d]; return sum; };
  function row(i) { // the weights of query i, as the two switches ask
    let w = Array.from({ length: i + 1 }, (_, j) => weightAt(head, i, j));
    if ($("no-first").checked && i > 0) {
      w[0] = 0;
      const rest = w.reduce((a, b) => a + b, 0);
      if (rest > 0) w = w.map((x) => x / rest);
    }
    if ($("hard").checked) { const best = w.indexOf(Math.max(...w)); w = w.map((_, j) => (j === best ? 1 : 0)); }
    return w;
  }
  names.forEach((name, h) => $("head").append(el("option", { value: h }, `${name}${slot(h) < 0 ? "" : " (with q, k, v)"}`)));
  const stepButtons = steps.map(([key, label]) => {
    const button = el("button", { type: "button", id: `step-${key}` }, label);
    button.addEventListener("click", () => { step = key; drawHead(); });
    $("steps").append(button);
    return button;
  });
  const readButtons = strip($("reads"), T, token, chooseQuery), readerButtons = strip($("readers"), T, token, chooseQuery);
  $("query").max = T - 1;
  $("query").addEventListener("input", () => chooseQuery(+$("query").value));
  $("head").addEventListener("change", () => chooseHead(+$("head").value));
  ["no-first", "hard"].forEach((id) => $(id).addEventListener("change", drawHead));
  $("map").addEventListener("click", (event) => {
    const box = $("map").getBoundingClientRect();
    if (step !== "sum") chooseQuery(Math.min(T - 1, Math.floor(((event.clientY - box.top) / box.height) * T)));
  });
  $("map").addEventListener("mousemove", (event) => {
    const box = $("map").getBoundingClientRect();
    const i = Math.min(T - 1, Math.floor(((event.clientY - box.top) / box.height) * T));
    const j = Math.min(T - 1, Math.floor(((event.clientX - box.left) / box.width) * T));
    if (step !== "sum") $("map-note").textContent = `${token(i)} (${i}) \u2192 ${token(j)} (${j}): ${cellText(i, j)}`;
  });
  function chooseQuery(i) { query = i; drawHead(); }
  function chooseHead(h, scroll = false) {
    head = h;
    headButtons.forEach((b, i) => b.setAttribute("aria-current", i === h));
    $("head").value = h;
    if (slot(h) < 0 && step !== "softmax") step = "softmax";
    drawHead();
    if (scroll) $("head").scrollIntoView({ block: "center" });
  }
  function logit(i, j) { return dot(vector("q", head, i), vector("k", head, j)) / (step === "scores" ? 1 : Math.sqrt(D)); }
  function cellText(i, j) {
    if (step === "softmax") return j > i ? "not visible" : percent(row(i)[j]);
    return step === "masked" && j > i ? "\u2212\u221e" : logit(i, j).toFixed(2);
  }
  function drawHead() {
    const detailed = slot(head) >= 0;
    stepButtons.forEach((b, i) => {
      b.setAttribute("aria-pressed", steps[i][0] === step);
      b.disabled = !detailed && steps[i][0] !== "softmax";
    });
    $("step-text").textContent = steps.find(([key]) => key === step)[2]
      + (detailed ? "" : ` (Queries, keys and values are kept for ${data.chosen.length} of ${L * H} heads, to keep the page small; --heads=${names[head]} chooses this one.)`);
    $("query").value = query;
    $("query-out").value = `${token(query)} (${query})`;
    $("query-name").textContent = token(query);
    const canvas = $("map");
    if (step === "softmax") {
      const all = Array.from({ length: T }, (_, i) => row(i));
      drawMap(canvas, T, T, (i, j) => (j > i ? null : Math.sqrt(all[i][j])));
      $("map-note").textContent = "Colour: square root of the weight, so that small ones can be seen. Rows: queries. Columns: keys.";
    } else if (step === "sum") {
      const w = row(query), sum = new Float32Array(D);
      for (let j = 0; j <= query; j++) vector("v", head, j).forEach((x, d) => (sum[d] += w[j] * x));
      let most = 1e-9;
      for (let j = 0; j <= query; j++) vector("v", head, j).forEach((x) => (most = Math.max(most, Math.abs(w[j] * x))));
      sum.forEach((x) => (most = Math.max(most, Math.abs(x))));
      drawMap(canvas, query + 3, D, (i, d) => i > query + 1 ? 0.5 + sum[d] / most / 2 : i > query ? null
        : 0.5 + (w[i] * vector("v", head, i)[d]) / most / 2, DIVERGING);
      $("map-note").textContent = `Rows: weight times value of tokens 0 to ${query}; below the gap: their sum. Columns: the head's ${D} features.`;
    } else {
      let least = Infinity, most = -Infinity;
      const all = Array.from({ length: T }, (_, i) => Array.from({ length: T }, (_, j) => {
        if (step === "masked" && j > i) return null;
        const x = logit(i, j);
        least = Math.min(least, x);
        most = Math.max(most, x);
        return x;
      }));
      drawMap(canvas, T, T, (i, j) => (all[i][j] === null ? null : (all[i][j] - least) / (most - least || 1)));
      $("map-note").textContent = `From ${least.toFixed(2)} (dark) to ${most.toFixed(2)} (bright). Rows: queries. Columns: keys.`;
    }
    const scale = Math.max(1, Math.min(Math.floor(480 / canvas.width), 48));
    canvas.style.width = `${canvas.width * scale}px`;
    canvas.style.height = step === "sum" ? `${Math.min(480, canvas.height * 14)}px` : "auto";
    canvas.style.aspectRatio = step === "sum" ? "auto" : "1";

    const w = row(query);
    readButtons.forEach((b, j) => {
      b.hidden = j > query;
      if (j <= query) { tint(b, Math.sqrt(w[j]), "--accent"); b.title = percent(w[j]); }
    });
    bars($("read-bars"), w.map((value, j) => ({ label: `${token(j)} (${j})`, value, text: percent(value) }))
      .sort((a, b) => b.value - a.value).slice(0, 8));
    readerButtons.forEach((b, i) => {
      b.hidden = i < query;
      if (i >= query) { const x = row(i)[query]; tint(b, Math.sqrt(x), "--accent"); b.title = percent(x); }
    });
    $("most-read").tBodies[0].replaceChildren(...Array.from({ length: T }, (_, i) => {
      const w = row(i), best = w.indexOf(Math.max(...w));
      return el("tr", {}, el("td", { class: "mono" }, `${token(i)} (${i})`), el("td", { class: "mono" }, `${token(best)} (${best})`), el("td", { class: "n" }, percent(w[best])));
    }));
    $("qkv").hidden = !detailed;
    if (detailed) {
      $("qkv-strips").replaceChildren(...["q", "k", "v"].map((name) => {
        const values = vector(name, head, query), most = Math.max(1e-9, ...values.map(Math.abs));
        const canvas = el("canvas", {});
        drawMap(canvas, 1, D, (_, d) => 0.5 + values[d] / most / 2, DIVERGING);
        canvas.style.width = `${Math.max(256, D * 4)}px`;
        canvas.style.height = "22px";
        return el("div", { class: "row" }, el("b", { class: "mono" }, name), canvas, el("span", { class: "note" }, `${D} features, up to \u00b1${most.toFixed(2)}`));
      }));
    }
    document.body.dataset.head = `${names[head]} ${step} ${query}`; // for tests
  }

  // 4. Logit lens
  const n = data.arrays.lens_p.shape[2];
  const lensRow = (l) => (l === 0 ? "embeddings" : l === L ? `block ${L} = output` : `block ${l}`);
  $("lens").append(el("thead", {}, el("tr", {}, el("th", {}, ""), ...Array.from({ length: T }, (_, i) => el("th", {}, token(i))))));
  const lensBody = el("tbody", {});
  for (let l = L; l >= 0; l--) {
    const cells = Array.from({ length: T }, (_, i) => {
      const button = el("button", { type: "button", title: `${lensRow(l)}, behind ${token(i)}` }, brief(tokens[data.lens_ids[(l * T + i) * n]]));
      const p = data.lens_true[l * T + i];
      button.style.background = `color-mix(in srgb, var(--accent) ${Math.round(75 * p)}%, transparent)`;
      button.addEventListener("click", () => {
        $("lens-bars").replaceChildren();
        const box = el("div", {});
        bars(box, top10(data.lens_ids, data.lens_p, l * T + i));
        $("lens-bars").append(el("p", {}, `${lensRow(l)}, behind ${token(i)} (${i}):`), box);
      });
      return el("td", {}, button);
    });
    lensBody.append(el("tr", {}, el("th", {}, lensRow(l)), ...cells));
  }
  $("lens").append(lensBody);

  // 5. Next token
  function next() {
    const [temperature, k, p, minimum] = ["temperature", "top-k", "top-p", "min-p"].map((id) => +$(id).value);
    [temperature.toFixed(2), k || "off", p < 1 ? p.toFixed(2) : "off", minimum ? minimum.toFixed(2) : "off"]
      .forEach((text, i) => ($("sliders").querySelectorAll("output")[i].value = text));
    const logits = data.logits, weight = Array.from(logits, (x) => Math.exp((x - logits[0]) / temperature));
    const stored = weight.reduce((a, b) => a + b, 0);
    const rest = data.tail.reduce((sum, [count, mean]) => sum + count * Math.exp((mean - logits[0]) / temperature), 0);
    const raw = weight.map((w) => w / (stored + rest));
    // the same filters in the same order as sample.py: top-k, then top-p, then min-p
    let kept = raw.map((_, i) => !k || i < k), sum = 0;
    const mass = raw.reduce((a, x, i) => a + (kept[i] ? x : 0), k ? 0 : rest / (stored + rest));
    kept = kept.map((keep, i) => { const before = sum; if (keep) sum += raw[i] / mass; return keep && (p >= 1 || before < p); });
    kept = kept.map((keep, i) => keep && raw[i] >= minimum * raw[0]);
    const open = !k && p >= 1 && minimum === 0; // then the tail takes part, too
    const total = raw.reduce((a, x, i) => a + (kept[i] ? x : 0), open ? rest / (stored + rest) : 0);
    bars($("next-bars"), raw.slice(0, 15).map((x, i) => ({ label: brief(tokens[data.logit_ids[i]]), value: kept[i] ? x / total : 0,
      text: kept[i] ? percent(x / total) : "out", out: !kept[i] })));
    const count = kept.filter(Boolean).length + (open ? data.tail.reduce((a, [c]) => a + c, 0) : 0);
    $("next-note").textContent = `${count.toLocaleString()} of ${config.vocab_size.toLocaleString()} tokens can be drawn. `
      + `This page holds the ${logits.length.toLocaleString()} likeliest, ${percent(stored / (stored + rest))} of the probability at this temperature`
      + (rest ? " (the others as a histogram)." : ".");
    document.body.dataset.next = (kept[0] ? raw[0] / total : 0).toFixed(6); // for tests
  }
  ["temperature", "top-k", "top-p", "min-p"].forEach((id) => $(id).addEventListener("input", next));
  next();
  let together = 1;
  const chances = data.new_p.map((p) => (together *= p));
  const written = strip($("written"), data.new_ids.length, (i) => brief(tokens[data.new_ids[i]]), showStep);
  written.forEach((b, i) => { tint(b, -Math.log2(data.new_p[i]) / 12); b.title = percent(data.new_p[i]); });
  function showStep(i) {
    const box = el("div", {});
    bars(box, top10(data.new_top_ids, data.new_top_p, i));
    written.forEach((b, j) => b.setAttribute("aria-pressed", i === j));
    $("written-bars").replaceChildren(el("p", {}, `Token ${i + 1}: ${brief(tokens[data.new_ids[i]])}, drawn at temperature ${data.temperature} where it had `
      + `${percent(data.new_p[i])} at temperature 1; all tokens up to here together ${percent(chances[i])}. The candidates were:`), box);
  }
  if (written.length) showStep(0);

  // 6. Leaving out
  $("target").max = $("target").value = T - 1;
  function influence() {
    const p = +$("target").value, last = p === T - 1;
    const name = last ? `${brief(tokens[data.lens_ids[(L * T + p) * n]])} (the likeliest next)` : `${token(p + 1)} (${p + 1})`;
    $("target-out").value = name;
    const rows = Array.from({ length: p + 1 }, (_, i) => ({ i, lost: data.influence[i * T + p], attended: data.mean_weights[p * T + i] }));
    const known = rows.filter((r) => !Number.isNaN(r.lost)), most = Math.max(0.1, ...known.map((r) => Math.abs(r.lost)));
    const strongest = new Set([...known].sort((a, b) => Math.abs(b.lost) - Math.abs(a.lost)).slice(0, 12).map((r) => r.i));
    bars($("influence"), known.filter((r) => strongest.has(r.i)).map((r) => ({ label: `${token(r.i)} (${r.i})`, value: r.lost / most, text: r.lost.toFixed(2) })));
    bars($("attention"), rows.filter((r) => strongest.has(r.i)).map((r) => ({ label: `${token(r.i)} (${r.i})`, value: r.attended, text: percent(r.attended) })));
    $("influence-note").textContent = `Tokens ${data.first_left_out} to ${T - 1} were left out, one at a time`
      + (data.first_left_out > 1 ? " (--leave_out=N for more)" : "") + "; shown are the 12 that mattered most. Red: likelier without it.";
  }
  $("target").addEventListener("input", influence);
  influence();

  // 7. Positions
  const about = data.position_about;
  $("position-text").textContent = {
    rope: "Rotary: queries and keys are turned by an angle that grows with the place, each pair of features at its own speed, so that their dot product knows the distance between them.",
    learned: "Learned: every place has a vector of its own, added to the token's embedding. It is a sum: no dimension is added.",
    sinusoidal: "Sinusoidal: sines and cosines of many wavelengths, added to the token's embedding. It is a sum: no dimension is added.",
    none: "None: only the mask tells this model about order.",
  }[about.kind];
  if (about.places) {
    const [rows, columns] = data.arrays.position_picture.shape, picture = el("canvas", {}), similar = el("canvas", {});
    drawMap(picture, rows, columns, (i, j) => data.position_picture[i * columns + j] / 255, DIVERGING);
    drawMap(similar, rows, rows, (i, j) => (1 + data.position_similarity[i * rows + j]) / 2, DIVERGING);
    picture.style.width = similar.style.width = "320px";
    picture.style.height = similar.style.height = "320px";
    const of = `places 0 (top) to ${about.places.at(-1)}`;
    $("position-maps").append(
      el("div", {}, el("h3", {}, about.kind === "rope" ? "Cosine of each pair's angle" : "The vectors"), picture, el("p", { class: "note" }, `Rows: ${of}. Columns: features.`)),
      el("div", {}, el("h3", {}, "How alike two places are"), similar, el("p", { class: "note" }, `Cosine; rows and columns: ${of}.`)));
    if (about.wavelengths) {
      const w = about.wavelengths.map((x) => (x < 100 ? x.toFixed(1) : Math.round(x).toLocaleString()));
      $("position-maps").append(el("div", {}, el("h3", {}, "Wavelengths"), el("p", { class: "note" }, `Tokens per full turn of each pair: ${w.join(", ")}.`)));
    }
  }

  // 8. Residual stream
  for (const [id, values] of [["norms", data.norms], ["gradients", data.gradients]]) {
    const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
    drawMap($(id), L + 1, T, (i, j) => Math.sqrt((values[(L - i) * T + j] - least) / (most - least || 1)));
    $(id).style.width = `${Math.min(380, T * 12)}px`;
    $(id).style.height = `${Math.min(300, (L + 1) * 18)}px`;
    $(id).after(el("p", { class: "note" }, `${least.toPrecision(3)} (dark) to ${most.toPrecision(3)} (bright). Top row: output. Columns: tokens.`));
  }
  const mean = (values, l) => values.subarray(l * T, (l + 1) * T).reduce((a, b) => a + b, 0) / T;
  for (let l = L; l >= 0; l--) {
    $("layers").tBodies[0].append(el("tr", {}, el("td", {}, lensRow(l)), el("td", { class: "n" }, mean(data.norms, l).toFixed(2)),
      el("td", { class: "n" }, mean(data.gradients, l).toExponential(1)), el("td", { class: "n" }, l ? percent(data.idle[l - 1]) : "")));
  }

  // 9. Neighbours
  const near = data.arrays.near_ids.shape[1] ?? 0;
  [...new Set(data.ids)].forEach((id, i) => $("near").tBodies[0].append(el("tr", {}, el("td", { class: "mono" }, brief(tokens[id])),
    el("td", { class: "mono" }, Array.from({ length: near }, (_, j) =>
      `${brief(tokens[data.near_ids[i * near + j]])} ${data.near_cosine[i * near + j].toFixed(2)}`).join("   ")))));

  chooseToken(Math.min(1, T - 1));
  chooseHead(data.chosen.length ? data.chosen[0][0] * H + data.chosen[0][1] : 0);
  document.body.dataset.drawn = "1"; // for tests
});
