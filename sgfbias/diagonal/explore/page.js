"use strict";
// The controls, what is asked for, and what is drawn. The data say whether there is a
// server: without one, all pictures are inside.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const chosen = {};
for (const control of data.controls) chosen[control.name] = control.value;
let shown = data.pictures[0], asking = false, again = false;

function build() {
  const form = byId("controls");
  const folded = document.createElement("details");
  element(folded, "summary", "Problem, sizes and seeds");
  for (const control of data.controls) {
    const label = element(control.more ? folded : form, "label", control.label);
    let input;
    const start = control.values.indexOf(control.value);
    if (control.slider) {
      const output = element(label, "output", control.texts[start]);
      input = element(label, "input");
      Object.assign(input, {type: "range", min: 0, max: control.values.length - 1, step: 1, value: start});
      input.addEventListener("input", () => { output.textContent = control.texts[input.value]; });
    } else {
      input = element(label, "select");
      control.texts.forEach((text, k) => { element(input, "option", text).value = k; });
      input.value = start;
    }
    input.id = "control-" + control.name;
    input.addEventListener(data.live ? "change" : "input", () => {
      chosen[control.name] = control.values[input.value];
      data.live ? ask() : find();
    });
  }
  if (folded.querySelector("label")) form.append(folded);
  form.addEventListener("submit", event => event.preventDefault());
}

function say(text, kind) {
  byId("state").textContent = text;
  byId("state").className = kind || "";
}

function find() {
  // In an exported page: the picture inside for the values chosen.
  shown = data.pictures.find(p => Object.entries(chosen).every(([name, value]) => p.config[name] === value));
  show();
  const c = shown.config;
  say(`Stored pictures, computed before: n = ${c.n}, d = ${c.d}, ${c.seeds} seeds. sgfbias explore computes any others.`);
}

async function ask() {
  // One question at a time; the newest values are asked for when the answer is there.
  if (asking) { again = true; return; }
  asking = true;
  const first = !shown.computed;
  byId("charts").classList.toggle("old", !first);
  say(first ? "Stored picture of these values; it is being computed." :
    "Computing. Sizes, noises and batch sizes that are new are compiled first.", "busy");
  try {
    const reply = await fetch("/picture", {method: "POST", body: JSON.stringify(chosen)});
    const found = await reply.json();
    if (again) { /* these are not the newest values */ }
    else if (found.error) say(found.error, "bad");
    else {
      shown = {...found, computed: true};
      show();
      say("Computed on this machine.");
    }
  } catch (error) {
    say("The server does not answer: is sgfbias explore still running?", "bad");
  }
  asking = false;
  if (again) { again = false; ask(); }
  else if (!byId("state").classList.contains("bad")) byId("charts").classList.remove("old");
}

function curves(name) {
  const series = [];
  const one = (from, colour, label) => {
    if (!from || !from[name].length) return;
    const [low, middle, high] = from[name];
    if (label !== "gradient flow") series.push({kind: "band", x: from.times, y: low, y2: high, colour});
    series.push({kind: "line", x: from.times, y: middle, colour, label});
    const ends = [from.times[0], from.times[from.times.length - 1]];
    if (name === "validation" && from.landed != null)
      series.push({kind: "line", x: ends, y: [from.landed, from.landed], colour, dash: "3 4", label: label + ": its limit"});
  };
  one(shown.descent, "gd", "gradient flow");
  one(shown.sgd, "sgd", "SGD");
  one(shown.sgf, "sgf", "SGD's flow");
  return series;
}

function ball(alpha) {
  // The level set of phi_alpha in two dimensions through (1, 0), in the first quarter:
  // g(x) + g(y) = g(1), where phi is a sum of g over the coordinates.
  const a2 = alpha * alpha;
  const g = b => b * Math.asinh(b / (2 * a2)) - Math.sqrt(b * b + 4 * a2 * a2) + 2 * a2;
  const xs = [], ys = [];
  for (let k = 0; k <= 60; k++) {
    // From the diagonal outwards in angle, the radius by bisection.
    const angle = k / 60 * Math.PI / 2, u = Math.cos(angle), v = Math.sin(angle);
    let low = 0.5, high = 1.5;
    for (let i = 0; i < 40; i++) {
      const r = (low + high) / 2;
      if (g(r * u) + g(r * v) < g(1)) low = r; else high = r;
    }
    xs.push(low * u); ys.push(low * v);
  }
  return {x: xs, y: ys};
}

function mark() {
  // The slider of the step size, at the predicted edges of stability. The stored places
  // of values are whole, so an edge lies between two of them.
  const control = data.controls.find(c => c.name === "step_size");
  const input = byId("control-step_size"), label = input.parentNode, last = control.values.length - 1;
  label.querySelectorAll(".mark").forEach(old => old.remove());
  for (const [name, edge] of Object.entries(shown.edges || {})) {
    const above = control.values.findIndex(v => v >= edge);
    const low = control.values[above - 1], high = control.values[above];
    const place = above < 0 ? last : above === 0 ? 0 : above - 1 + (edge - low) / (high - low);
    const text = `${name} ${edge.toPrecision(2)}`, right = place > last / 2;
    const found = element(label, "span", right ? `${text} ▲` : `▲ ${text}`);
    found.className = "mark " + (name === "SGD" ? "sgd" : "sgf");
    found.title = "Predicted edge: above it second moments grow, and few seeds converge.";
    found.style.marginLeft = `calc(${place / last} * (100% - 1rem) + 0.1rem)`;
    if (right) found.style.transform = "translateX(calc(-100% + 0.8rem))";
  }
}

function show() {
  mark();
  const {config, coordinates: c} = shown, noisy = config.noise !== "none";
  const time = {label: "flow time (steps × gamma)", log: true};
  chart(byId("loss"), {title: "Training loss", x: time, y: {log: true}, series: curves("loss")});
  chart(byId("validation"), {title: "Distance from the truth, |β − β*|²", x: time, y: {log: true}, series: curves("validation")});
  const series = [{kind: "line", x: shown.curve.integral, y: shown.curve.error, colour: "truth", label: "predicted"}];
  if (noisy) series.push({kind: "dot", ...{x: shown.seeds.integral, y: shown.seeds.error}, colour: "sgf", faint: true, label: "seeds, at their limits"});
  series.push({kind: "square", x: [0], y: [shown.descent.landed], colour: "gd", label: "gradient flow: no noise"});
  chart(byId("curve"), {title: "Solutions that noise can select",
    x: {label: config.noise === "label" ? "∫(L + δ²) dt under noise" : "∫ L dt under noise, which shrinks alpha"}, y: {log: true}, series});
  const grey = [1e-5, 1e-3, 0.03, 0.2, 0.5, 2].map(a => ({kind: "line", ...ball(a), colour: "line"}));
  const round = {kind: "line", ...ball(10), colour: "faint", dash: "2 4", label: "l2"};
  const diamond = {kind: "line", x: [0, 1], y: [1, 0], colour: "faint", dash: "7 4", label: "l1"};
  const balls = [...grey, round, diamond, {kind: "line", ...ball(config.alpha), colour: "gd", label: `alpha ${config.alpha.toPrecision(2)}, the start`}];
  if (noisy && shown.effective_alpha !== null)
    balls.push({kind: "line", ...ball(shown.effective_alpha), colour: "sgf", label: `effective alpha ${shown.effective_alpha.toPrecision(2)}`});
  chart(byId("ball"), {title: "Unit ball of what is minimised", x: {label: "β₁ (upwards: β₂)", values: [0, 1]}, y: {values: [0, 1]}, series: balls, square: true});
  const places = c.truth.map((_, k) => k), at = {x: places};
  chart(byId("coordinates"), {
    title: "Selected and predicted solution" + (noisy ? ", of the seed with the median error" : ""), wide: true,
    x: {label: `coordinates, the ${c.support} of the truth first` + (c.of > places.length ? ` (${places.length} of ${c.of})` : ""), values: [-0.5, places.length - 0.5], bare: true}, y: {},
    series: [
      {kind: "bar", ...at, y: c.truth, colour: "truth", label: "truth β*", step: 1},
      {kind: "stem", x: places.slice(0, c.low.length), y: c.low, y2: c.high, colour: "sgf", label: "5% to 95% of the seeds"},
      {kind: "dash", ...at, y: c.l2, colour: "faint", label: "minimum l2"},
      {kind: "cross", ...at, y: c.l1, colour: "control", label: "minimum l1"},
      {kind: "dot", ...at, y: c.landed, colour: "sgf", label: "limit of the run"},
      {kind: "ring", ...at, y: c.predicted, colour: "text", label: "predicted by theory"},
    ]});
  byId("notes").replaceChildren();
  for (const text of shown.notes) element(byId("notes"), "li", text);
  const body = byId("table").tBodies[0];
  body.replaceChildren();
  for (const [name, value] of shown.table) {
    const row = body.insertRow();
    row.insertCell().textContent = name; row.insertCell().textContent = value;
  }
  byId("texts").replaceChildren();
  for (const text of [shown.sgd_missing, ...shown.texts]) if (text) element(byId("texts"), "p", text);
  for (const name of ["shell", "python"]) byId(name).textContent = shown[name];
}

function toggle(id, on) {
  document.documentElement.classList.toggle(id, on);
  byId(id).setAttribute("aria-pressed", on);
  if (shown) show();
}
for (const id of ["large", "dark"])
  byId(id).addEventListener("click", () => toggle(id, !document.documentElement.classList.contains(id)));
for (const button of document.querySelectorAll(".copy"))
  button.addEventListener("click", () => navigator.clipboard.writeText(byId(button.dataset.of).textContent));

build();
const theme = matchMedia("(prefers-color-scheme: dark)");
toggle("dark", theme.matches);
theme.addEventListener("change", () => toggle("dark", theme.matches));
toggle("large", location.hash === "#large");
let wide = innerWidth;
addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; show(); } });
data.live ? ask() : find();
