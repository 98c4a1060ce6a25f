// A run's page: curves (uPlot), run toggles, samples side by side.
start(({ runs }) => {
  const palette = ["#0b7fd4", "#e8590c", "#2f9e44", "#ae3ec9", "#c2255c", "#0c8599", "#b58900", "#6741d9"];
  const runColour = (i) => palette[i % palette.length];
  const visible = runs.map(() => true);
  const axes = {
    step: { label: "step", of: (points) => points.step },
    tokens: { label: "tokens", of: (points) => points.tokens },
    seconds: { label: "seconds", of: (points) => points.seconds },
    flops: {
      label: "FLOPs",
      of: (points, run) => run.flops_per_token && points.tokens?.map((t) => t === null ? null : t * run.flops_per_token),
    },
  };
  const panels = [
    ["loss", "Loss (nats per token)", true],
    ["val_bits_per_byte", "Validation bits per byte"],
    ["gap", "Validation loss minus training loss"],
    ["lr", "Learning rate"],
    ["grad_norm", "Gradient norm"],
    ["tokens_per_second", "Tokens per second"],
    ["mfu", "Model FLOPs utilization"],
    ["memory", "Peak memory (GB)"],
  ];
  const scores = new Set(runs.flatMap((run) => Object.keys(run.evaluations).filter((key) => key.includes("/"))));
  scores.forEach((key) => panels.push([key, "Task " + key]));
  let charts = [];

  const usable = (values) => values && values.some((v) => v !== null && v !== undefined);

  function smoothed(values, weight) {
    let mean = 0, total = 0; // an exponential mean without the bias of its beginning
    return values.map((v) => {
      if (v === null) return null;
      mean = weight * mean + (1 - weight) * v;
      total = weight * total + (1 - weight);
      return mean / total;
    });
  }

  // The curves of a panel: [{run, label, x, y, width}].
  function curvesOf(key, title) {
    const weight = +$("smooth").value, axis = axes[$("axis").value], out = [];
    runs.forEach((run, r) => {
      if (!visible[r]) return;
      const { curves, evaluations } = run, several = runs.length > 1;
      const add = (points, values, label, width) => {
        const x = axis.of(points, run), named = several ? run.name + (key === "loss" ? " " + label : "") : label;
        if (usable(x) && usable(values)) out.push({ run: r, label: named, x, y: values, width });
      };
      const scaled = key === "memory" ? curves.memory?.map((v) => v === null ? null : v / 1e9) : curves[key];
      if (evaluations[key]) {
        add(evaluations, evaluations[key], title, 2);
      } else if (scaled) {
        add(curves, key === "lr" ? scaled : smoothed(scaled, weight), key === "loss" ? "training" : title, 1);
        if (key === "loss") {
          add(evaluations, evaluations.train_loss, "training, evaluated", 1.8);
          add(evaluations, evaluations.val_loss, "validation", 2.5);
        }
      }
    });
    return out;
  }

  // x positions of what interrupted the visible runs: [x, colour, dashes].
  function marks() {
    const axis = axes[$("axis").value], out = [];
    runs.forEach((run, r) => {
      const x = axis.of(run.curves, run), steps = run.curves.step;
      if (!visible[r] || !usable(x)) return;
      run.starts.slice(1).forEach(({ step }) => {
        const i = steps.findIndex((s) => s > step);
        if (i >= 0) out.push([x[i], runColour(r), [6, 4]]);
      });
      const skipped = run.curves.skipped ?? [];
      steps.forEach((_, i) => {
        if (run.curves.loss[i] === null || (skipped[i] ?? 0) > (skipped[i - 1] ?? 0)) out.push([x[i], "#e03131", [2, 3]]);
      });
    });
    return out;
  }

  function draw() {
    charts.forEach((chart) => chart.destroy());
    charts = [];
    $("charts").replaceChildren();
    const style = getComputedStyle(document.documentElement);
    const [ink, paper] = ["--soft", "--bg"].map((name) => style.getPropertyValue(name)), grid = style.getPropertyValue("--line");
    const lines = marks();
    for (const [key, title, large] of panels) {
      const curves = curvesOf(key, title);
      if (!curves.length) continue;
      const box = el("div", { class: large ? "chart large" : "chart", id: "chart-" + key }, el("h3", {}, title));
      $("charts").append(box);
      const data = uPlot.join(curves.map(({ x, y }) => {
        const order = [...x.keys()].filter((i) => x[i] !== null && (!$("log-x").checked || x[i] > 0));
        return [order.map((i) => x[i]), order.map((i) => y[i])];
      }));
      const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
      const short = (u, ticks) => ticks.map((v) => v === null ? "" :
        Math.abs(v) >= 1e5 || (v && Math.abs(v) < 1e-3) ? v.toExponential(1).replace("+", "") : String(+v.toPrecision(6)));
      const logY = key === "loss" && $("log-y").checked && curves.every((c) => c.y.every((v) => v === null || v > 0));
      charts.push(new uPlot({
        width: Math.max(280, box.clientWidth), height: large ? 340 : 210,
        cursor: { sync: { key: "run" } },
        scales: { x: { time: false, distr: $("log-x").checked ? 3 : 1 }, y: { distr: logY ? 3 : 1 } },
        axes: [{ ...axis, values: short, label: axes[$("axis").value].label, labelSize: 18 }, { ...axis, values: short, size: 62 }],
        series: [{ label: axes[$("axis").value].label, value: (u, v) => v === null ? "" : v.toLocaleString() },
          ...curves.map(({ run, label, width, y }) => ({
            label, width, stroke: runColour(run), spanGaps: true, points: { show: y.length < 40 || undefined, fill: paper },
            value: (u, v) => v === null || v === undefined ? "" : String(+v.toPrecision(5)),
          }))],
        hooks: { drawAxes: [(u) => {
          const { left, top, width, height } = u.bbox;
          lines.forEach(([x, stroke, dashes]) => {
            const at = u.valToPos(x, "x", true);
            if (at < left || at > left + width) return;
            u.ctx.save();
            u.ctx.strokeStyle = stroke;
            u.ctx.setLineDash(dashes);
            u.ctx.beginPath();
            u.ctx.moveTo(at, top);
            u.ctx.lineTo(at, top + height);
            u.ctx.stroke();
            u.ctx.restore();
          });
        }] },
      }, data, box));
    }
    document.body.dataset.drawn = charts.length; // for tests
  }

  runs.forEach((run, r) => {
    if (runs.length === 1) return;
    const swatch = el("span", { class: "swatch" });
    swatch.style.background = runColour(r);
    const button = el("button", { type: "button", class: "toggle", "aria-pressed": "true" }, swatch, run.name);
    button.addEventListener("click", () => {
      visible[r] = !visible[r];
      button.setAttribute("aria-pressed", visible[r]);
      draw();
    });
    $("toggles").append(button);
  });
  for (const [key, { label, of }] of Object.entries(axes)) {
    if (runs.some((run) => usable(of(run.curves, run)))) $("axis").append(el("option", { value: key }, label));
  }
  if (!$("axis").options.length) $("axis").append(el("option", { value: "step" }, "step"));
  $("smooth").addEventListener("input", () => { $("smooth-out").value = $("smooth").value; draw(); });
  ["axis", "log-x", "log-y"].forEach((id) => $(id).addEventListener("change", draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  $("controls").hidden = $("legend").hidden = false;
  draw();

  function showSamples() {
    const { samples } = runs[$("sample-run").value], number = +$("sample-number").value;
    $("samples").replaceChildren(...samples.filter((s) => s.sample === number).map((s) =>
      el("div", {}, el("b", {}, `step ${s.step.toLocaleString()}`), el("pre", {}, s.text))));
    $("samples").scrollLeft = $("samples").scrollWidth; // the newest is what one wants first
  }
  function showNumbers() {
    const numbers = [...new Set(runs[$("sample-run").value].samples.map((s) => s.sample))];
    $("sample-number").replaceChildren(...numbers.map((n) => el("option", { value: n }, String(n + 1))));
    showSamples();
  }
  runs.forEach((run, r) => run.samples.length && $("sample-run").append(el("option", { value: r }, run.name)));
  if ($("sample-run").options.length) {
    $("sample-controls").hidden = false;
    $("sample-run").addEventListener("change", showNumbers);
    $("sample-number").addEventListener("change", showSamples);
    showNumbers();
  } else {
    $("samples").append(el("p", { class: "note" }, "No samples were written (sample_tokens=0, or none yet)."));
  }
});
