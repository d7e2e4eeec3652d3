"use strict";
// Charts in SVG, without any library. A series is {kind, x, y, colour, label, ...}; kinds
// are line, band (y and y2), dot, ring, square, cross, dash (short and flat), bar (from 0)
// and stem (y to y2). Values that are null or cannot be drawn on the axis are left out.

const SVG = "http://www.w3.org/2000/svg";

function node(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function element(parent, name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  parent.append(made);
  return made;
}

const SUPER = {"-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹"};
const plain = v => v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(0) : String(Number(v.toPrecision(10)));
const power = k => "10" + String(k).replace(/./g, c => SUPER[c]);

function axis(values, log, range, most) {
  // The map from values to pixels, and the ticks. `most` is how many labels fit.
  const fine = values.filter(v => Number.isFinite(v) && (!log || v > 0)).map(v => log ? Math.log10(v) : v);
  let low = Math.min(...fine), high = Math.max(...fine);
  if (!fine.length) { low = 0; high = 1; }
  if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
  const pad = 0.04 * (high - low);
  low -= pad; high += pad;
  const place = v => range[0] + (v - low) / (high - low) * (range[1] - range[0]);
  let ticks = [];
  if (log && high - low > 1) {
    const step = Math.ceil((Math.floor(high) - Math.ceil(low) + 1) / most);
    for (let k = Math.ceil(low); k <= high; k += step) ticks.push([k, power(k)]);
  } else if (log) {
    const spread = [1, 2, 5].flatMap(m => [-1, 0, 1].map(e => m * 10 ** (Math.floor(low) + e + 1)));
    for (const v of spread.sort((a, b) => a - b)) {
      const k = Math.log10(v);
      if (k >= low && k <= high) ticks.push([k, plain(v)]);
    }
  } else {
    const raw = (high - low) / most, unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(m => m * unit).find(s => s >= raw);
    for (let v = Math.ceil(low / step) * step; v <= high; v += step)
      ticks.push([v, plain(v)]);
  }
  return {
    at: v => (v === null || !Number.isFinite(v) || (log && v <= 0)) ? null : place(log ? Math.log10(v) : v),
    ticks: ticks.map(([v, text]) => [place(v), text]),
    end: place(low), other: place(high),
  };
}

function draw(svg, series, x, y, unit) {
  const colour = `var(--${series.colour})`, r = 0.22 * unit;
  const points = series.x.map((v, k) => [x.at(v), y.at(series.y[k]), series.y2 ? y.at(series.y2[k]) : 0])
    .filter(p => p.every(v => v !== null));
  if (!points.length) return;
  const style = {class: "s-" + series.kind};
  if (series.kind === "line") {
    node(svg, "path", {...style, stroke: colour, "stroke-dasharray": series.dash || "none",
      "stroke-opacity": series.faint ? 0.35 : 1, d: "M" + points.map(p => `${p[0]} ${p[1]}`).join("L")});
  } else if (series.kind === "band") {
    const back = [...points].reverse().map(p => `${p[0]} ${p[2]}`);
    node(svg, "path", {...style, fill: colour, d: "M" + points.map(p => `${p[0]} ${p[1]}`).concat(back).join("L") + "Z"});
  } else for (const [a, b, c] of points) {
    if (series.kind === "dot") node(svg, "circle", {...style, cx: a, cy: b, r, fill: colour, opacity: series.faint ? 0.5 : 1});
    if (series.kind === "ring") node(svg, "circle", {...style, cx: a, cy: b, r: 1.7 * r, stroke: colour});
    if (series.kind === "square") node(svg, "rect", {...style, x: a - 1.3 * r, y: b - 1.3 * r, width: 2.6 * r, height: 2.6 * r, fill: colour});
    if (series.kind === "cross") node(svg, "path", {class: "s-tick", stroke: colour, d: `M${a - r} ${b - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`});
    if (series.kind === "dash") node(svg, "path", {class: "s-tick", stroke: colour, d: `M${a - 1.8 * r} ${b}h${3.6 * r}`});
    if (series.kind === "stem") node(svg, "path", {class: "s-stem", stroke: colour, "stroke-width": 0.3 * unit, "stroke-opacity": 0.3, d: `M${a} ${b}V${c}`});
    if (series.kind === "bar") {
      const zero = y.at(0), wide = Math.max(2, 0.8 * series.step * Math.abs(x.at(1) - x.at(0)));
      node(svg, "rect", {...style, x: a - wide / 2, y: Math.min(b, zero), width: wide, height: Math.abs(b - zero), fill: colour});
    }
  }
}

function sample(kind) {
  // What the legend shows for a series.
  return {line: [0, 1], dot: [0.5], ring: [0.5], square: [0.5], cross: [0.5], dash: [0.5], bar: [0.5], stem: [0.5]}[kind];
}

function chart(figure, {title, x, y, series, wide, square}) {
  figure.replaceChildren();
  element(figure, "figcaption", title);
  const unit = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const legend = element(figure, "div", undefined, "legend");
  for (const one of series.filter(s => s.label)) {
    const row = element(legend, "span");
    const box = document.createElementNS(SVG, "svg");
    row.append(box, one.label);
    const w = 1.5 * unit, h = 0.8 * unit;
    box.setAttribute("viewBox", `0 0 ${w} ${h}`);
    const spot = sample(one.kind);
    draw(box, {...one, step: 1, x: spot, y: spot.map(() => one.kind === "bar" ? 1 : 0.5), y2: one.kind === "stem" ? [0] : undefined},
      {at: v => v * w}, {at: v => h - v * h}, unit);
  }
  const width = Math.max(figure.clientWidth, 200);
  const height = square ? Math.min(width, 22 * unit) : Math.min(Math.max(0.62 * width, 11 * unit), wide ? 17 * unit : 20 * unit);
  const left = 3.1 * unit, bottom = (x.bare ? 1.5 : 2.6) * unit, right = 0.4 * unit, top = 0.5 * unit;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("width", width); svg.setAttribute("height", height);
  svg.setAttribute("role", "img"); svg.setAttribute("aria-label", title);
  figure.append(svg);
  const side = square ? Math.min(width - left - right, height - bottom - top) : 0;
  const span = square ? [left, left + side] : [left, width - right];
  const rise = square ? [top + side, top] : [height - bottom, top];
  const used = key => series.flatMap(s => (s[key] || []).concat(key === "y" && s.y2 ? s.y2 : []));
  const a = axis(x.values || used("x"), x.log, span, Math.max(2, Math.floor((span[1] - span[0]) / (4 * unit))));
  const b = axis(y.values || used("y"), y.log, rise, Math.max(2, Math.floor((rise[0] - rise[1]) / (2.2 * unit))));
  for (const [place, text] of x.bare ? [] : a.ticks) {
    node(svg, "path", {class: "grid", d: `M${place} ${rise[0]}V${rise[1]}`});
    node(svg, "text", {x: place, y: rise[0] + 1.1 * unit, "text-anchor": "middle"}, text);
  }
  for (const [place, text] of b.ticks) {
    node(svg, "path", {class: "grid", d: `M${span[0]} ${place}H${span[1]}`});
    node(svg, "text", {x: span[0] - 0.35 * unit, y: place + 0.28 * unit, "text-anchor": "end"}, text);
  }
  node(svg, "path", {class: "frame", d: `M${span[0]} ${rise[1]}V${rise[0]}H${span[1]}`});
  node(svg, "text", {x: (span[0] + span[1]) / 2, y: rise[0] + (x.bare ? 1.1 : 2.2) * unit, "text-anchor": "middle"}, x.label);
  for (const one of series) draw(svg, one, a, b, unit);
}
