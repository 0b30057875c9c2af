// Explorer: draws a bank of settings that Python computed beforehand. It needs no kernel, no library and no network.
//
// The header says what the bank's bytes mean (see banks.py). One function draws everything from `state`; every control
// only changes `state`, and so do Python, a link and the text typed into "restore".

// Okabe and Ito's colours; the dark theme takes lighter ones, so that blue and black stay in sight.
const THEMES = {
  light: {
    paper: "#ffffff", ink: "#222222", soft: "#5a5a5a", rule: "#e5e5e5", frame: "#888888",
    neutral: "#4d4d4d", safe: "#0072B2", violating: "#D55E00", chosen: "#009E73", start: "#B07800",
    danger: "#D55E00", goal: "#009E73", heat: [[255, 255, 255], [86, 180, 233]],
  },
  dark: {
    paper: "#16181b", ink: "#eeeeee", soft: "#b4b4b4", rule: "#33373c", frame: "#8a8a8a",
    neutral: "#c8c8c8", safe: "#56B4E9", violating: "#FF8A3D", chosen: "#2CCB9C", start: "#E69F00",
    danger: "#FF8A3D", goal: "#2CCB9C", heat: [[22, 24, 27], [24, 96, 145]],
  },
}; // prettier-ignore
const DASHES = { neutral: [], safe: [], violating: [7, 4], chosen: [] };
const MARKERS = { neutral: "circle", safe: "circle", violating: "triangle", chosen: "star" };
const GROUPS = ["circle", "square", "triangle", "diamond", "star", "plus"];
const BORDERS = { danger: [], goal: [8, 3], safe: [2, 3], start: [6, 3, 2, 3], neutral: [] };
const GONE = -32768; // a position that is not there
const HATCH = 9;
const SPEEDS = [0.25, 0.5, 1, 2, 4];
let made = 0; // for ids that no other Explorer of the page has

const element = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

function words(value) {
  if (typeof value === "string") return value;
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  if (value && Math.abs(value) < 1e-3) return value.toExponential(1);
  return String(+value.toPrecision(Math.abs(value) < 1 ? 3 : 4));
}

// What the bank holds --------------------------------------------------------------------------------------------

function unpack(header, bytes) {
  const part = (Type, name) => {
    if (!header.parts[name]) return null;
    const [start, length] = header.parts[name];
    return new Type(bytes.buffer.slice(bytes.byteOffset + start, bytes.byteOffset + start + length));
  };
  const { trajectories: n, steps } = header;
  const xy = part(Int16Array, "paths");
  const codes = part(Uint8Array, "outcomes");
  const bits = part(Uint8Array, "violating");
  const settings = header.shapes.length;
  // the last step at which each path is there: it stands where it ended once the others go on
  const last = new Int32Array(settings * n);
  for (let p = 0; p < last.length; p++) {
    let t = steps - 1;
    while (t > 0 && xy[(p * steps + t) * 2] === GONE) t--;
    last[p] = t;
  }
  const values = part(Float32Array, "values");
  return {
    n, steps, xy, last, settings,
    heat: part(Uint8Array, "heat"),
    arrows: part(Float32Array, "arrows"),
    values,
    // numbers this much smaller than the largest are nothing but rounding
    grain: 1e-6 * (values ?? []).reduce((most, v, k) => (k % 3 === 2 && Math.abs(v) > most ? Math.abs(v) : most), 0),
    outcome: (s, i) => header.outcomes[codes[s * n + i]],
    violates: bits ? (s, i, t) => (bits[((s * n + i) * steps + t) >> 3] >> (((s * n + i) * steps + t) & 7)) & 1 : null,
    present: codes ? header.outcomes.filter((_, code) => codes.includes(code)) : [],
    marked: bits ? bits.some(Boolean) : false,
  }; // prettier-ignore
}

// The state: the same rules as `checked` in explorer.py
function checked(given, header, before) {
  if (given === null || typeof given !== "object" || Array.isArray(given)) throw Error("the state must be a JSON object");
  const known = ["version", "seed", "setting", "step", "pinned", "single"];
  for (const key of Object.keys(given)) if (!known.includes(key)) throw Error(`the state has no "${key}"; it has ${known.join(", ")}`);
  const first = { version: header.version, seed: header.seed, setting: header.axes.map(() => 0), step: Math.max(header.steps - 1, 0), pinned: null, single: null };
  const whole = { ...first, ...before, ...given };
  if (whole.version !== header.version) throw Error(`the state is of version ${whole.version}, this picture reads version ${header.version}`);
  if (whole.seed !== header.seed) throw Error(`the state belongs to the seed ${whole.seed}, this picture was made with the seed ${header.seed}`);
  const place = (at, length, name) => {
    if (!Number.isInteger(at) || at < 0 || at >= length) throw Error(`${name} must be a whole number from 0 to ${length - 1}, not ${JSON.stringify(at)}`);
  };
  for (const name of ["setting", "pinned"]) {
    if (name === "pinned" && whole[name] === null) continue;
    if (!Array.isArray(whole[name]) || whole[name].length !== header.axes.length) throw Error(`${name} must be ${header.axes.length} places, one for each axis`);
    whole[name].forEach((at, k) => place(at, header.axes[k].values.length, `${name} along "${header.axes[k].name}"`));
  }
  place(whole.step, Math.max(header.steps, 1), "step");
  if (whole.single !== null) place(whole.single, header.trajectories, "single");
  return Object.fromEntries(known.map((key) => [key, whole[key]]));
}

// The grid of a grid world, the widest where each setting has its own; none if their rows differ
function gridOf({ scene, shapes }) {
  const grid = (list) => list.filter((shape) => shape.form === "grid").map((shape) => shape.at);
  const all = grid(scene.shapes).length ? grid(scene.shapes) : shapes.map(grid).flat();
  const same = all.length >= shapes.length || grid(scene.shapes).length;
  if (!all.length || !same || all.some(([rows]) => rows !== all[0][0])) return null;
  return [all[0][0], Math.max(...all.map(([, columns]) => columns))];
}

function closest(values) {
  const spots = [];
  for (let p = 0; p < values.length; p += 3) if (Number.isFinite(values[p])) spots.push([+values[p + 1].toFixed(3), values[p]]);
  spots.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const gaps = spots.slice(1).map(([y, x], k) => (y === spots[k][0] ? x - spots[k][1] : Infinity));
  const least = Math.min(...gaps.filter((gap) => gap > 0));
  return Number.isFinite(least) ? least : null;
}

// Drawing helpers ------------------------------------------------------------------------------------------------

function marker(ctx, shape, x, y, r) {
  const ring = (points) => {
    points.forEach(([dx, dy], k) => ctx[k ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
    ctx.closePath();
  };
  if (shape === "circle") {
    ctx.moveTo(x + r, y);
    ctx.arc(x, y, r, 0, 7);
  } else if (shape === "square") ctx.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
  else if (shape === "triangle") ring([[0, -1.25], [1.15, 0.85], [-1.15, 0.85]]); // prettier-ignore
  else if (shape === "diamond") ring([[0, -1.35], [1.1, 0], [0, 1.35], [-1.1, 0]]); // prettier-ignore
  else if (shape === "plus") ring([[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]]); // prettier-ignore
  else ring([...Array(10).keys()].map((k) => [Math.sin((k * Math.PI) / 5) * (k % 2 ? 0.65 : 1.6), -Math.cos((k * Math.PI) / 5) * (k % 2 ? 0.65 : 1.6)]));
}

function cross(ctx, x, y, r) {
  ctx.moveTo(x - r, y - r);
  ctx.lineTo(x + r, y + r);
  ctx.moveTo(x - r, y + r);
  ctx.lineTo(x + r, y - r);
}

function ticks(low, high, room) {
  const rough = (high - low) / Math.max(3, Math.floor(room));
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= 0.75 * rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(+(k * step).toPrecision(10));
  return found;
}

function hatch(ctx, kind, colour, ratio) {
  const tile = element("canvas");
  tile.width = tile.height = HATCH * ratio;
  const pen = tile.getContext("2d");
  pen.scale(ratio, ratio);
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = 1.2;
  pen.beginPath();
  if (kind === "danger") for (const k of [-HATCH, 0, HATCH]) (pen.moveTo(k - 1, HATCH + 1), pen.lineTo(k + HATCH + 1, -1));
  else if (kind === "goal") (pen.moveTo(0, HATCH / 2), pen.lineTo(HATCH, HATCH / 2));
  else if (kind === "safe") pen.arc(HATCH / 2, HATCH / 2, 1.1, 0, 7);
  else if (kind === "start") (pen.moveTo(HATCH / 2, 0), pen.lineTo(HATCH / 2, HATCH));
  kind === "safe" ? pen.fill() : pen.stroke();
  const pattern = ctx.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / ratio));
  return pattern;
}

// The widget -----------------------------------------------------------------------------------------------------

function render({ model, el }) {
  const header = model.get("header");
  const data = unpack(header, model.get("bank"));
  const { axes, scene, numbers } = header;
  const id = `safediffkit-${Math.random().toString(36).slice(2, 7)}-${++made}`;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const names = Object.keys(numbers[0]);
  const moves = header.scrubber !== null && data.steps > 1;
  const board = gridOf(header); // rows and columns are then numbered as tables are, row 0 on top
  const drawn = ["none", "all"].includes(header.trail) ? header.trail : "past";
  const called = (name) => header.words[name] ?? name; // what this picture calls an outcome or a kind of shape
  const at = (setting) => setting.reduce((sum, place, k) => sum * axes[k].values.length + place, 0);
  const value = (k, setting) => axes[k].values[setting[k]];

  // how near two numbers written into the picture stand side by side
  const nearby = data.values ? closest(data.values.subarray(0, data.values.length / data.settings)) : null;

  let state = checked({}, header, null);
  let theme = THEMES.light;
  let ratio = 1;
  let width = 0;
  let panels = [];
  let backdrop = null; // axes and legend, drawn once for each size and theme
  let hatches = {};
  let fields = new Map(); // setting -> its heat as a small canvas
  let hover = null;
  let part = 0; // how far the play has come from this step to the next
  let moved = Math.max(0, axes.findIndex((axis) => typeof axis.values[0] === "number"));
  let count = 0;

  // The page
  const root = element("div", { class: "safediffkit-explorer", role: "group", "aria-label": header.title });
  const control = (tag, name, attributes = {}) => {
    const key = `${id}-${++made}`;
    const input = element(tag, { id: key, "data-lm-suppress-shortcuts": "true", ...attributes });
    const label = element("label", { for: key }, name);
    return { input, label };
  };
  const button = (text, act) => {
    const made = element("button", { type: "button", "data-lm-suppress-shortcuts": "true" }, text);
    made.addEventListener("click", act);
    return made;
  };

  const canvas = element("canvas", { role: "img", class: "sdk-canvas" });
  const tip = element("div", { class: "sdk-tip", "aria-hidden": "true" });
  const picture = element("div", { class: "sdk-picture" }, canvas, tip);
  const dialed = element("div", { class: "sdk-dials" });
  const side = element("div", { class: "sdk-side" });
  const readout = element("div", { class: "safediffkit-numbers", role: "status" });
  const message = element("p", { class: "sdk-message", role: "alert" });

  const dials = axes.map((axis, k) => {
    const text = typeof axis.values[0] === "string";
    const { input, label } = text ? control("select", axis.name) : control("input", axis.name, { type: "range", min: 0, max: axis.values.length - 1, step: 1 });
    const output = element("span", { class: "sdk-value", "aria-hidden": "true" });
    if (text) axis.values.forEach((name, place) => input.append(element("option", { value: place }, name)));
    input.addEventListener("input", timed(() => {
      if (target === k) pause();
      const setting = [...state.setting];
      setting[k] = +input.value;
      moved = k;
      change({ setting });
    })); // prettier-ignore
    dialed.append(element("div", { class: "sdk-dial" }, label, ...(text ? [] : [output]), input));
    return { input, output, text };
  });

  // The scrubber, and what the play button moves: an axis, or -1 for the steps
  const strip = element("div", { class: "sdk-strip" });
  const target = axes.findIndex((axis) => axis.name === header.play);
  const plays = target >= 0 || moves;
  const sign = element("span", { "aria-hidden": "true", class: "sdk-sign" });
  const word = element("span", {}, "play");
  const player = button("", () => (playing ? pause() : start()));
  player.classList.add("sdk-play");
  player.append(sign, word);
  const speed = control("select", "speed");
  for (const factor of SPEEDS) speed.input.append(element("option", { value: factor }, `${factor}×`));
  speed.input.value = "1";
  const scrub = control("input", header.scrubber ?? "", { type: "range", min: 0, max: data.steps - 1, step: 1 });
  const clock = element("span", { class: "sdk-value", "aria-hidden": "true" });
  scrub.input.addEventListener("input", timed(() => {
    if (target < 0) pause();
    change({ step: +scrub.input.value });
  })); // prettier-ignore
  if (plays) strip.append(player);
  if (moves) strip.append(element("div", { class: "sdk-dial sdk-scrub" }, scrub.label, clock, scrub.input));
  if (plays) strip.append(element("div", { class: "sdk-row" }, speed.label, speed.input));

  const compare = control("input", "compare", { type: "checkbox" });
  compare.input.addEventListener("change", timed(() => change({ pinned: compare.input.checked ? [...state.setting] : null })));
  const single = control("input", "single out", { type: "number", min: 0, max: data.n, step: 1 });
  single.input.addEventListener("input", timed(() => {
    const k = Math.round(+single.input.value);
    if (Number.isFinite(k) && k >= 0 && k <= data.n) change({ single: k ? k - 1 : null });
  })); // prettier-ignore
  const extras = element("div", { class: "sdk-row" });
  extras.append(element("span", { class: "sdk-pair" }, compare.input, compare.label));
  if (data.n > 1) extras.append(element("span", { class: "sdk-pair" }, single.label, single.input));

  const curve = header.curve === null ? null : element("canvas", { role: "img", class: "sdk-curve" });
  side.append(element("div", {}, extras, readout), ...(curve ? [element("div", {}, curve)] : []));

  const note = element("textarea", { rows: 3, spellcheck: "false", "aria-label": "state as JSON", "data-lm-suppress-shortcuts": "true" });
  const said = element("span", { role: "status", class: "sdk-said" });
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "copied";
    } catch {
      note.value = text;
      note.select();
      said.textContent = "marked: copy it with your keyboard";
    }
  };
  const details = element("details", {}, element("summary", {}, "state"), note);
  const keys = element("div", { class: "sdk-row" });
  keys.append(button("copy JSON", () => copy(JSON.stringify(state))));
  keys.append(button("restore", timed(() => {
    let given;
    try {
      given = JSON.parse(note.value);
    } catch {
      return complain("this is no JSON");
    }
    said.textContent = accept(given, true) ? "restored" : "";
  }))); // prettier-ignore
  if (model.link) keys.append(button("copy link", () => (send(), copy(model.link()))));
  keys.append(said);
  details.append(keys);

  root.append(element("div", { class: "sdk-title", "aria-hidden": "true" }, header.title));
  root.append(element("div", { class: "sdk-body" }, dialed, element("div", { class: "sdk-main" }, picture, ...(plays || moves ? [strip] : [])), side));
  root.append(message, details);
  el.append(root);

  // State: every change comes through here
  function timed(act) {
    return (event) => {
      const began = performance.now();
      act(event);
      root.dataset.ms = (performance.now() - began).toFixed(2);
    };
  }

  let queued = 0;
  function send() {
    cancelAnimationFrame(queued);
    queued = 0;
    model.set("state", state);
    model.save_changes();
  }

  function change(patch) {
    state = { ...state, ...patch };
    part = 0;
    message.textContent = said.textContent = "";
    queued ||= requestAnimationFrame(send);
    draw();
  }

  function complain(text) {
    message.textContent = `This state was not taken: ${text}.`;
  }

  function accept(given, tell) {
    let fresh;
    try {
      fresh = checked(given, header, tell ? null : state);
    } catch (error) {
      complain(error.message);
      return false;
    }
    if (JSON.stringify(fresh) === JSON.stringify(state)) return true;
    if (tell) change(fresh);
    else {
      state = fresh;
      part = 0;
      message.textContent = "";
      draw();
    }
    return true;
  }
  const followed = () => {
    if (!queued) accept(model.get("state"), false); // a move under way is newer
  };

  // Play
  let playing = 0;
  let before = 0;
  const length = target < 0 ? data.steps : axes[target].values.length;
  const place = () => (target < 0 ? state.step : state.setting[target]);
  const go = (to) => {
    if (target < 0) change({ step: to });
    else change({ setting: state.setting.map((old, k) => (k === target ? to : old)) });
  };
  function start() {
    if (place() >= length - 1) go(0);
    if (target >= 0) moved = target;
    word.textContent = "pause";
    readout.setAttribute("aria-live", "off"); // or a screen reader would never end
    root.dataset.playing = "";
    part = before = 0;
    playing = requestAnimationFrame(tick);
  }
  function pause() {
    if (!playing) return;
    cancelAnimationFrame(playing);
    playing = 0;
    word.textContent = "play";
    readout.removeAttribute("aria-live");
    delete root.dataset.playing;
    part = 0;
    draw();
  }
  function tick(now) {
    const passed = before ? Math.min(now - before, 250) / 1000 : 0;
    before = now;
    // a whole run takes 3 to 8 seconds; where motion is unwelcome, single slow steps
    const seconds = still.matches ? 0.8 * (length - 1) : target < 0 ? Math.min(8, Math.max(3, length / 15)) : 0.5 * (length - 1);
    part += (passed / seconds) * (length - 1) * +speed.input.value;
    const whole = Math.floor(part);
    const rest = part - whole;
    if (whole) {
      const to = Math.min(place() + whole, length - 1);
      go(to);
      if (to === length - 1) return pause();
    }
    part = rest;
    if (target < 0 && !still.matches) draw();
    playing = requestAnimationFrame(tick);
  }

  // Layout
  function measure() {
    width = root.clientWidth;
    if (!width) return;
    ratio = window.devicePixelRatio || 1;
    // two pictures, or numbers side by side, need the whole width
    const dense = nearby && ((width - 370) * nearby) / (scene.x[1] - scene.x[0]) < 46;
    root.classList.toggle("sdk-wide", width >= 720 && !state.pinned && !dense);
    const w = picture.clientWidth;
    const two = state.pinned ? 2 : 1;
    const stacked = two === 2 && w < 560;
    const ctx = canvas.getContext("2d");
    ctx.font = font(12);
    const lines = legend(ctx, w);
    const top = 8 + lines.length * 20 + (two === 2 ? 20 : 0);
    const [left, bottom, gap] = [w < 420 ? 44 : 54, 40, 12];
    const right = data.heat ? 66 : gap; // the last panel has the scale of the colours
    const columns = stacked ? 1 : two;
    const each = (w - right - gap * (columns - 1)) / columns - left;
    const [xs, ys] = [scene.x[1] - scene.x[0], scene.y[1] - scene.y[0]];
    let [pw, ph] = [each, Math.min(430, Math.max(190, each * 0.66))];
    if (scene.equal) {
      const scale = Math.min(each / xs, 430 / ys);
      [pw, ph] = [xs * scale, ys * scale];
    }
    const height = top + (ph + bottom) * (stacked ? 2 : 1) + (stacked ? 24 : 0);
    panels = [...Array(two).keys()].map((k) => {
      const across = stacked ? 0 : k * (left + each + gap);
      const x = across + left + (each - pw) / 2;
      const y = top + (stacked ? k * (ph + bottom + 24) : 0);
      const [ax, ay] = [pw / xs, -ph / ys];
      const [bx, by] = [x - scene.x[0] * ax, y + ph - scene.y[0] * ay];
      const one = { x, y, w: pw, h: ph, pinned: two === 2 && k === 0, scale: k === two - 1, X: (v) => v * ax + bx, Y: (v) => v * ay + by, ax, ay };
      if (data.xy) {
        // straight from the rounded integers to pixels
        const [[xl, xh], [yl, yh]] = header.range;
        one.qx = (ax * (xh - xl)) / 65534;
        one.qy = (ay * (yh - yl)) / 65534;
        one.ox = one.X(xl) + 32767 * one.qx;
        one.oy = one.Y(yl) + 32767 * one.qy;
      }
      return one;
    });
    size(canvas, w, height);
    if (curve) size(curve, curve.parentNode.clientWidth, 150);
    backdrop = element("canvas");
    backdrop.width = canvas.width;
    backdrop.height = canvas.height;
    hatches = {};
    const pen = backdrop.getContext("2d");
    pen.scale(ratio, ratio);
    furnish(pen, w, height, lines);
  }
  function size(one, w, h) {
    one.width = Math.round(w * ratio);
    one.height = Math.round(h * ratio);
    one.style.height = `${h}px`;
  }
  // an end of the heat's range, as exactly as its colours can be told apart
  function coarse(end) {
    const grain = 10 ** Math.floor(Math.log10((header.heat.high - header.heat.low) / 100));
    return words(+(Math.round(end / grain) * grain).toPrecision(4));
  }
  const font = (px, weight = "") => `${weight} ${px}px system-ui, sans-serif`;

  // What the legend names: all that occurs in any setting, so that it stands still while the settings change
  function legend(ctx, w) {
    const items = [];
    if (data.present.some((outcome) => outcome !== "neutral")) for (const outcome of data.present) items.push({ outcome, text: called(outcome) });
    if (data.marked) items.push({ violation: true, text: called("violating part") });
    header.groups.forEach((text, k) => items.push({ shape: GROUPS[k % GROUPS.length], text }));
    const silent = [...scene.shapes, ...header.shapes.flat()].filter((shape) => !shape.label && shape.kind !== "neutral");
    for (const kind of new Set(silent.map((shape) => shape.kind))) items.push({ kind, text: called(kind) });
    const lines = [];
    let free = 0;
    for (const item of items) {
      item.w = ctx.measureText(item.text).width + 48;
      if (item.w > free) {
        lines.push([]);
        free = w - 8;
      }
      lines.at(-1).push(item);
      free -= item.w;
    }
    return lines;
  }

  function furnish(ctx, w, height, lines) {
    ctx.fillStyle = theme.paper;
    ctx.fillRect(0, 0, w, height);
    ctx.font = font(12);
    ctx.textBaseline = "middle";
    lines.forEach((line, row) => {
      let x = 6;
      const y = 12 + row * 20;
      for (const item of line) {
        ctx.beginPath();
        if (item.outcome) {
          const paths = drawn !== "none" && data.steps > 1;
          if (paths) {
            style(ctx, item.outcome);
            ctx.moveTo(x, y);
            ctx.lineTo(x + 24, y);
            ctx.stroke();
          }
          ctx.setLineDash([]);
          ctx.beginPath();
          marker(ctx, header.groups.length ? "circle" : MARKERS[item.outcome], x + (paths ? 24 : 16), y, 4);
          ctx.fillStyle = theme[item.outcome];
          if (!paths || !header.groups.length) ctx.fill();
        } else if (item.violation) {
          ctx.strokeStyle = theme.violating;
          ctx.lineWidth = 4.5;
          ctx.moveTo(x, y);
          ctx.lineTo(x + 24, y);
          ctx.stroke();
          ctx.beginPath();
          ctx.lineWidth = 1.3;
          ctx.strokeStyle = theme.ink;
          for (const dx of [6, 18]) cross(ctx, x + dx, y, 3);
          ctx.stroke();
        } else if (item.shape) {
          marker(ctx, item.shape, x + 16, y, 5);
          ctx.fillStyle = theme.soft;
          ctx.fill();
        } else {
          ctx.rect(x, y - 6, 24, 12);
          fill(ctx, item.kind);
        }
        ctx.fillStyle = theme.ink;
        ctx.fillText(item.text, x + 33, y);
        x += item.w;
      }
    });
    for (const panel of panels) axesOf(ctx, panel);
  }

  function axesOf(ctx, panel) {
    const { x, y, w, h, X, Y } = panel;
    const [rows, columns] = board ?? [0, 0];
    const xt = board ? [...Array(columns).keys()].map((k) => [k + 0.5, k]) : ticks(scene.x[0], scene.x[1], w / 70).map((v) => [v, words(v)]);
    const yt = board ? [...Array(rows).keys()].map((k) => [rows - k - 0.5, k]) : ticks(scene.y[0], scene.y[1], h / 48).map((v) => [v, words(v)]);
    ctx.strokeStyle = theme.rule;
    ctx.lineWidth = 1;
    ctx.beginPath();
    if (!board) {
      for (const [v] of xt) (ctx.moveTo(X(v), y), ctx.lineTo(X(v), y + h));
      for (const [v] of yt) (ctx.moveTo(x, Y(v)), ctx.lineTo(x + w, Y(v)));
    }
    ctx.stroke();
    ctx.fillStyle = theme.soft;
    ctx.font = font(11.5);
    ctx.textBaseline = "top";
    ctx.textAlign = "center";
    for (const [v, text] of xt) ctx.fillText(text, X(v), y + h + 5);
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    for (const [v, text] of yt) ctx.fillText(text, x - 6, Y(v));
    ctx.fillStyle = theme.ink;
    ctx.font = font(12.5);
    ctx.textAlign = "center";
    ctx.fillText(scene.x[2], x + w / 2, y + h + 29, w);
    ctx.save();
    ctx.translate(x - 42 + (x - 42 < 6 ? 6 : 0), y + h / 2);
    ctx.rotate(-Math.PI / 2);
    ctx.fillText(scene.y[2], 0, 0, h + 30);
    ctx.restore();
    if (data.heat && panel.scale) {
      const { low, high } = header.heat;
      const [from, to] = theme.heat.map((colour) => `rgb(${colour})`);
      const shade = ctx.createLinearGradient(0, y + h, 0, y);
      shade.addColorStop(0, from);
      shade.addColorStop(1, to);
      ctx.fillStyle = shade;
      ctx.strokeStyle = theme.frame;
      ctx.fillRect(x + w + 10, y, 12, h);
      ctx.strokeRect(x + w + 10, y, 12, h);
      ctx.fillStyle = theme.soft;
      ctx.font = font(11);
      ctx.textAlign = "left";
      ctx.fillText(coarse(high), x + w + 26, y + 6);
      ctx.fillText(coarse(low), x + w + 26, y + h - 6);
      ctx.save();
      ctx.translate(x + w + 34, y + h / 2);
      ctx.rotate(-Math.PI / 2);
      ctx.textAlign = "center";
      ctx.fillStyle = theme.ink;
      const room = h - 44;
      const lines = [""];
      for (const word of header.heatName.split(" ")) {
        const longer = `${lines.at(-1)} ${word}`.trim();
        if (ctx.measureText(longer).width > room && lines.at(-1) && lines.length < 2) lines.push(word);
        else lines[lines.length - 1] = longer;
      }
      lines.forEach((line, k) => ctx.fillText(line, 0, k * 14, h));
      ctx.restore();
    }
    ctx.textAlign = "left";
  }

  function style(ctx, outcome) {
    ctx.strokeStyle = theme[outcome];
    ctx.lineWidth = outcome === "chosen" ? 3.5 : data.n <= 4 ? 2.4 : 1.7;
    ctx.setLineDash(DASHES[outcome]);
    ctx.lineJoin = "round";
  }

  function fill(ctx, kind) {
    const colour = kind === "neutral" ? theme.frame : theme[kind];
    ctx.save();
    ctx.globalAlpha = kind === "neutral" ? 0.1 : 0.16;
    ctx.fillStyle = colour;
    ctx.fill();
    ctx.globalAlpha = 0.5;
    if (kind !== "neutral") {
      ctx.fillStyle = hatches[kind] ??= hatch(ctx, kind, colour, ratio);
      ctx.fill();
    }
    ctx.globalAlpha = 1;
    ctx.strokeStyle = colour;
    ctx.lineWidth = 1.4;
    ctx.setLineDash(BORDERS[kind]);
    ctx.stroke();
    ctx.restore();
  }

  function tipOf(ctx, x, y, dx, dy, r) {
    const angle = Math.atan2(dy, dx);
    ctx.moveTo(x, y);
    ctx.lineTo(x - r * Math.cos(angle - 0.45), y - r * Math.sin(angle - 0.45));
    ctx.moveTo(x, y);
    ctx.lineTo(x - r * Math.cos(angle + 0.45), y - r * Math.sin(angle + 0.45));
  }

  function shapesOf(ctx, panel, shapes) {
    const { X, Y } = panel;
    for (const { form, at, kind } of shapes) {
      ctx.beginPath();
      if (form === "region") {
        ctx.rect(X(Math.min(at[0], at[2])), Y(Math.max(at[1], at[3])), Math.abs((at[2] - at[0]) * panel.ax), Math.abs((at[3] - at[1]) * panel.ay));
        fill(ctx, kind);
      } else if (form === "circle") {
        ctx.ellipse(X(at[0]), Y(at[1]), at[2] * panel.ax, -at[2] * panel.ay, 0, 0, 7);
        fill(ctx, kind);
      } else if (form === "grid") {
        const [rows, columns] = at;
        ctx.strokeStyle = theme.frame;
        ctx.lineWidth = 1;
        for (let r = 0; r <= rows; r++) (ctx.moveTo(X(0), Y(r)), ctx.lineTo(X(columns), Y(r)));
        for (let c = 0; c <= columns; c++) (ctx.moveTo(X(c), Y(0)), ctx.lineTo(X(c), Y(rows)));
        ctx.stroke();
      } else {
        ctx.save();
        ctx.strokeStyle = kind === "neutral" ? theme.ink : theme[kind];
        ctx.lineWidth = 2;
        if (form === "line") {
          ctx.setLineDash(BORDERS[kind]);
          for (let k = 0; k < at.length; k += 2) ctx[k ? "lineTo" : "moveTo"](X(at[k]), Y(at[k + 1]));
        } else {
          const [x, y] = [X(at[0] + at[2]), Y(at[1] + at[3])];
          ctx.moveTo(X(at[0]), Y(at[1]));
          ctx.lineTo(x, y);
          tipOf(ctx, x, y, at[2] * panel.ax, at[3] * panel.ay, 9);
        }
        ctx.stroke();
        ctx.restore();
      }
    }
  }

  // Text with a rim of paper, so that it can be read above anything
  function write(ctx, text, x, y, colour) {
    ctx.lineJoin = "round";
    ctx.lineWidth = 3.5;
    ctx.strokeStyle = theme.paper;
    ctx.strokeText(text, x, y);
    ctx.fillStyle = colour;
    ctx.fillText(text, x, y);
  }

  function labelsOf(ctx, panel, shapes) {
    const { X, Y } = panel;
    ctx.font = font(12, "600");
    for (const { form, at, kind, label, marks } of shapes) {
      const colour = kind === "neutral" ? theme.ink : theme[kind];
      ctx.textBaseline = "middle";
      ctx.textAlign = "center";
      if (form === "grid") {
        for (const [row, column, text] of marks) write(ctx, text, X(column + 0.5), Y(at[0] - row - 0.22), theme.ink);
      } else if (label && form === "region") {
        const [x0, x1] = [Math.max(X(Math.min(at[0], at[2])), panel.x), Math.min(X(Math.max(at[0], at[2])), panel.x + panel.w)];
        const top = Math.max(Y(Math.max(at[1], at[3])), panel.y);
        const narrow = ctx.measureText(label).width > x1 - x0 - 8;
        if (!narrow) write(ctx, label, (x0 + x1) / 2, top + 13, colour);
        else {
          ctx.save(); // too narrow for the name: write it upwards
          ctx.translate((x0 + x1) / 2, Math.min(top + ctx.measureText(label).width / 2 + 10, panel.y + panel.h / 2));
          ctx.rotate(-Math.PI / 2);
          write(ctx, label, 0, 0, colour);
          ctx.restore();
        }
      } else if (label && form === "circle") {
        const reach = at[2] * panel.ax;
        const above = Y(at[1]) + at[2] * panel.ay - 9;
        const inside = ctx.measureText(label).width < 2 * reach - 12 && reach > 14;
        const half = ctx.measureText(label).width / 2 + 4;
        const x = Math.min(Math.max(X(at[0]), panel.x + half), panel.x + panel.w - half);
        write(ctx, label, x, inside && reach < 60 ? Y(at[1]) : above > panel.y + 6 ? above : Y(at[1]) - at[2] * panel.ay + 10, colour);
      } else if (label) {
        const end = form === "line" ? at.slice(-2) : [at[0] + at[2] / 2, at[1] + at[3] / 2];
        const reach = ctx.measureText(label).width / 2 + 4;
        const x = Math.min(Math.max(X(end[0]), panel.x + reach), panel.x + panel.w - reach);
        write(ctx, label, x, Math.min(Math.max(Y(end[1]) - 10, panel.y + 9), panel.y + panel.h - 9), colour);
      }
    }
  }

  function heatOf(ctx, panel, s) {
    const { rows, columns } = header.heat;
    let field = fields.get(s);
    if (!field) {
      field = element("canvas");
      field.width = columns;
      field.height = rows;
      const pen = field.getContext("2d");
      const image = pen.createImageData(columns, rows);
      const [from, to] = theme.heat;
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < columns; c++) {
          const level = data.heat[(s * rows + r) * columns + c];
          if (level === 255) continue;
          const k = ((rows - 1 - r) * columns + c) * 4;
          for (let j = 0; j < 3; j++) image.data[k + j] = from[j] + ((to[j] - from[j]) * level) / 254;
          image.data[k + 3] = 255;
        }
      pen.putImageData(image, 0, 0);
      if (fields.size > 128) fields.clear();
      fields.set(s, field);
    }
    ctx.imageSmoothingEnabled = rows * columns > 400; // few cells are cells, many are a smooth field
    ctx.drawImage(field, panel.x, panel.y, panel.w, panel.h);
  }

  // The last step of path i that is drawn, and whether its head is on the way to the next
  function reach(s, i) {
    const end = data.last[s * data.n + i];
    const step = moves ? state.step : data.steps - 1;
    return step >= end ? [end, 0] : [step, part];
  }

  function trace(ctx, panel, s, i, whole) {
    const { xy, steps, n } = data;
    const { qx, qy, ox, oy } = panel;
    const [end, rest] = whole ? [data.last[s * n + i], 0] : reach(s, i);
    let p = (s * n + i) * steps * 2;
    let pen = false;
    for (let t = 0; t <= end; t++, p += 2) {
      if (xy[p] === GONE) {
        pen = false;
        continue;
      }
      if (pen) ctx.lineTo(xy[p] * qx + ox, xy[p + 1] * qy + oy);
      else ctx.moveTo(xy[p] * qx + ox, xy[p + 1] * qy + oy);
      pen = true;
    }
    if (rest && pen && xy[p] !== GONE) {
      const [x, y] = head(panel, s, i);
      ctx.lineTo(x, y);
    }
  }

  function head(panel, s, i) {
    const { xy, steps, n } = data;
    const [end, rest] = reach(s, i);
    const p = ((s * n + i) * steps + end) * 2;
    if (xy[p] === GONE) return null;
    let [x, y] = [xy[p], xy[p + 1]];
    if (rest && xy[p + 2] !== GONE) {
      x += rest * (xy[p + 2] - x);
      y += rest * (xy[p + 3] - y);
    }
    return [x * panel.qx + panel.ox, y * panel.qy + panel.oy];
  }

  // The thick stretch where path i violates, and the crosses on it
  function stretch(ctx, panel, s, i, crosses) {
    const { xy, steps, n, violates } = data;
    const [end] = reach(s, i);
    let [fromX, fromY, seen] = [0, 0, false];
    let [lastX, lastY] = [-99, -99];
    for (let t = 0; t <= end; t++) {
      const p = ((s * n + i) * steps + t) * 2;
      if (xy[p] === GONE) {
        seen = false;
        continue;
      }
      const [x, y] = [xy[p] * panel.qx + panel.ox, xy[p + 1] * panel.qy + panel.oy];
      if (violates(s, i, t)) {
        if (seen && !crosses) (ctx.moveTo(fromX, fromY), ctx.lineTo(x, y));
        if (crosses && Math.abs(x - lastX) + Math.abs(y - lastY) > 13) (cross(ctx, x, y, 2.6), ([lastX, lastY] = [x, y]));
      }
      [fromX, fromY, seen] = [x, y, true];
    }
  }

  function pathsOf(ctx, panel, s, which, alpha, bold) {
    const lines = drawn !== "none" && data.steps > 1;
    const crowd = which.length;
    const faint = crowd > 64 ? 0.55 : crowd > 12 ? 0.75 : 1;
    if (lines) {
      for (const outcome of data.present) {
        const some = which.filter((i) => data.outcome(s, i) === outcome);
        if (!some.length) continue;
        ctx.beginPath();
        for (const i of some) trace(ctx, panel, s, i, drawn === "all");
        if (bold || data.heat) {
          ctx.setLineDash([]);
          ctx.lineWidth = bold ? 6 : 3.4;
          ctx.strokeStyle = theme.paper;
          ctx.globalAlpha = alpha * 0.7;
          ctx.stroke();
        }
        style(ctx, outcome);
        if (bold) ctx.lineWidth += 1.6;
        ctx.globalAlpha = alpha * (outcome === "chosen" ? 1 : faint);
        ctx.stroke();
      }
      ctx.setLineDash([]);
      if (data.marked) {
        ctx.globalAlpha = alpha * Math.max(faint, 0.8);
        ctx.strokeStyle = theme.violating;
        ctx.lineWidth = bold ? 6 : 4.5;
        ctx.beginPath();
        for (const i of which) stretch(ctx, panel, s, i, false);
        ctx.stroke();
        ctx.strokeStyle = theme.ink;
        ctx.lineWidth = 1.2;
        ctx.beginPath();
        for (const i of which) stretch(ctx, panel, s, i, true);
        ctx.stroke();
      }
    }
    const radius = bold ? 6.5 : crowd <= 12 ? 6 : crowd <= 64 ? 4.4 : crowd <= 400 ? 3.1 : 2.2;
    const batches = new Map(); // one fill for all markers that look the same
    for (const i of which) {
      const spot = head(panel, s, i);
      if (!spot) continue;
      const outcome = data.outcome(s, i);
      const shape = header.groups.length ? GROUPS[(i % header.groups.length) % GROUPS.length] : MARKERS[outcome];
      const key = `${outcome} ${shape}`;
      if (!batches.has(key)) batches.set(key, []);
      batches.get(key).push(spot);
    }
    ctx.lineWidth = 2;
    ctx.strokeStyle = theme.paper;
    for (const [key, spots] of [...batches].sort()) {
      const [outcome, shape] = key.split(" ");
      ctx.beginPath();
      for (const [x, y] of spots) marker(ctx, shape, x, y, radius * (outcome === "chosen" ? 1.4 : 1));
      ctx.fillStyle = theme[outcome];
      ctx.globalAlpha = alpha * (crowd > 200 ? 0.75 : 1);
      if (crowd <= 400) ctx.stroke(); // the rim first, or rims would hide the markers of a dense crowd
      ctx.fill();
    }
    ctx.globalAlpha = 1;
  }

  const everyone = [...Array(data.n).keys()];
  function panelOf(ctx, panel, setting) {
    const s = at(setting);
    const shapes = [...scene.shapes, ...header.shapes[s]];
    ctx.save();
    ctx.beginPath();
    ctx.rect(panel.x, panel.y, panel.w, panel.h);
    ctx.clip();
    if (data.heat) heatOf(ctx, panel, s);
    shapesOf(ctx, panel, shapes);
    if (data.arrows) {
      const many = data.arrows.length / data.settings;
      ctx.strokeStyle = theme.soft;
      ctx.lineWidth = 1.3;
      ctx.beginPath();
      for (let p = s * many; p < (s + 1) * many; p += 4) {
        const [x, y, dx, dy] = data.arrows.subarray(p, p + 4);
        if (!Number.isFinite(x + y + dx + dy)) continue;
        const size = Math.hypot(dx * panel.ax, dy * panel.ay);
        ctx.moveTo(panel.X(x), panel.Y(y));
        ctx.lineTo(panel.X(x + dx), panel.Y(y + dy));
        if (size > 1) tipOf(ctx, panel.X(x + dx), panel.Y(y + dy), dx * panel.ax, dy * panel.ay, Math.min(8, Math.max(3, size / 3)));
      }
      ctx.stroke();
    }
    const chosen = hover ?? state.single;
    if (data.n) {
      pathsOf(ctx, panel, s, chosen === null ? everyone : everyone.filter((i) => i !== chosen), chosen === null ? 1 : 0.18, false);
      if (chosen !== null) pathsOf(ctx, panel, s, [chosen], 1, true);
    }
    if (data.values) {
      const many = data.values.length / data.settings;
      ctx.font = font(Math.min(11.5, Math.max(7.5, (nearby ?? 99) * panel.ax * 0.24)));
      ctx.textBaseline = "middle";
      ctx.textAlign = "center";
      for (let p = s * many; p < (s + 1) * many; p += 3) {
        const [x, y, number] = data.values.subarray(p, p + 3);
        if (Number.isFinite(x + y + number)) write(ctx, words(Math.abs(number) < data.grain ? 0 : +number.toPrecision(3)), panel.X(x), panel.Y(y), theme.ink);
      }
    }
    labelsOf(ctx, panel, shapes);
    ctx.restore();
    ctx.strokeStyle = theme.frame;
    ctx.lineWidth = 1;
    ctx.strokeRect(panel.x, panel.y, panel.w, panel.h);
    if (state.pinned) {
      ctx.font = font(12.5, "600");
      ctx.textAlign = "left";
      ctx.textBaseline = "middle";
      ctx.fillStyle = theme.ink;
      ctx.fillText(`${panel.pinned ? "pinned" : "now"}: ${brief(setting)}`, panel.x, panel.y - 11, panel.w);
    }
  }
  const brief = (setting) => axes.map((axis, k) => (typeof value(k, setting) === "string" ? value(k, setting) : `${axis.name} ${words(value(k, setting))}`)).join(", ");

  // The small curve over the axis last moved
  let extent = null;
  if (curve) {
    const finite = numbers.map((row) => row[header.curve]).filter((v) => v !== null);
    extent = [Math.min(...finite), Math.max(...finite)];
    if (!(extent[1] > extent[0])) extent = [extent[0] - 1, extent[0] + 1];
    if (!Number.isFinite(extent[0])) extent = [0, 1];
  }
  function drawCurve() {
    const ctx = curve.getContext("2d");
    const [w, h] = [curve.width / ratio, curve.height / ratio];
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.fillStyle = theme.paper;
    ctx.fillRect(0, 0, w, h);
    const axis = axes[moved];
    const many = axis.values.length;
    const [left, right, top, bottom] = [44, w - 12, 26, h - 36];
    const text = typeof axis.values[0] === "string";
    const pad = text ? (right - left) / many / 2 : 8;
    const X = (k) => (many > 1 ? left + pad + (k / (many - 1)) * (right - left - 2 * pad) : (left + right) / 2);
    const Y = (v) => bottom - 6 - ((v - extent[0]) / (extent[1] - extent[0])) * (bottom - top - 12);
    const along = (setting) => axis.values.map((_, k) => numbers[at(setting.map((place, j) => (j === moved ? k : place)))][header.curve]);
    ctx.strokeStyle = theme.rule;
    ctx.lineWidth = 1;
    ctx.beginPath();
    for (const v of extent) (ctx.moveTo(left, Y(v)), ctx.lineTo(right, Y(v)));
    ctx.stroke();
    ctx.strokeStyle = theme.frame;
    ctx.beginPath();
    ctx.moveTo(left, top);
    ctx.lineTo(left, bottom);
    ctx.lineTo(right, bottom);
    ctx.stroke();
    const plot = (setting, colour, dash, mark) => {
      const ys = along(setting);
      ctx.strokeStyle = ctx.fillStyle = colour;
      ctx.lineWidth = 1.8;
      ctx.setLineDash(dash);
      if (!text) {
        ctx.beginPath();
        let pen = false;
        ys.forEach((v, k) => {
          if (v !== null) ctx[pen ? "lineTo" : "moveTo"](X(k), Y(v));
          pen = v !== null;
        });
        ctx.stroke();
      }
      ctx.setLineDash([]);
      ctx.beginPath();
      if (many <= 40) ys.forEach((v, k) => v !== null && marker(ctx, mark, X(k), Y(v), 2.2));
      ctx.fill();
      const here = ys[setting[moved]];
      if (here === null) return;
      ctx.beginPath();
      marker(ctx, mark, X(setting[moved]), Y(here), 6);
      if (mark === "square") {
        ctx.fillStyle = theme.paper;
        ctx.fill();
        ctx.stroke();
      } else ctx.fill();
    };
    if (state.pinned) plot(state.pinned, theme.soft, [4, 3], "square");
    plot(state.setting, theme.safe, [], "circle");
    ctx.font = font(12);
    ctx.fillStyle = theme.ink;
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    ctx.fillText(header.curve, 4, 11, w - 8);
    ctx.textAlign = "center";
    ctx.fillText(axis.name, (left + right) / 2, h - 9, right - left);
    ctx.fillStyle = theme.soft;
    ctx.font = font(11);
    const room = (right - left) / Math.max(many, 1);
    (text ? axis.values.map((_, k) => k) : [0, many - 1]).forEach((k) => ctx.fillText(words(axis.values[k]), X(k), bottom + 10, text ? Math.max(room, 24) : 60));
    ctx.textAlign = "right";
    for (const v of extent) ctx.fillText(words(+v.toPrecision(3)), left - 5, Y(v));
    const listed = along(state.setting).map((v, k) => `${words(axis.values[k])}: ${words(v)}`);
    curve.setAttribute("aria-label", `${header.curve} over ${axis.name}. ${listed.join(", ")}. At present ${words(axis.values[state.setting[moved]])}.`);
  }

  // The picture in words
  const thing = data.steps > 1 && drawn !== "none" ? "path" : "point";
  const time = () => words(header.times[state.step]);
  function tally(s) {
    const counts = {};
    for (const i of everyone) counts[data.outcome(s, i)] = (counts[data.outcome(s, i)] ?? 0) + 1;
    const some = Object.entries(counts).filter(([outcome]) => data.present.length > 1 || outcome !== "neutral");
    return `${data.n} ${thing}${data.n === 1 ? "" : "s"}${some.length ? `: ${some.map(([outcome, many]) => `${many} ${called(outcome)}`).join(", ")}` : ""}`;
  }
  function about(i, s) {
    const group = header.groups.length ? `, ${header.groups[i % header.groups.length]}` : "";
    const [t] = reach(s, i);
    const p = ((s * data.n + i) * data.steps + t) * 2;
    const spot = [0, 1].map((j) => {
      const [low, high] = header.range[j];
      return words(+(low + ((data.xy[p + j] + 32767) / 65534) * (high - low)).toPrecision(3));
    });
    const outcome = data.present.length > 1 ? `: ${called(data.outcome(s, i))}` : "";
    const bad = data.marked ? `, violating steps: ${[...Array(t + 1).keys()].filter((k) => data.violates(s, i, k)).length}` : "";
    return `${thing} ${i + 1}${group}${outcome}${bad}, at (${spot.join(", ")})`;
  }
  function say() {
    const s = at(state.setting);
    const other = state.pinned ? at(state.pinned) : null;
    const chosen = hover ?? state.single;
    const where = axes.map((axis, k) => `${axis.name}${typeof axis.values[0] === "string" ? ":" : ""} ${words(value(k, state.setting))}`);
    if (moves) where.push(`${header.scrubber} ${time()}`);
    const lines = [where.join(" · ")];
    if (data.n) lines.push(tally(s) + (other === null ? "" : ` (pinned: ${tally(other).replace(/^.*?: /, "")})`));
    if (chosen !== null) lines.push(about(chosen, s));
    const rows = names.map((name) => {
      const row = element("div", { class: "sdk-number" }, element("span", {}, name), " ", element("b", {}, words(numbers[s][name])));
      if (other !== null) row.append(" ", element("span", { class: "sdk-other" }, `pinned ${words(numbers[other][name])}`));
      return row;
    });
    readout.replaceChildren(...lines.map((text, k) => element("p", k ? {} : { class: "sdk-where" }, text)), ...rows);
    const marks = [...scene.shapes, ...header.shapes[s]].filter((shape) => shape.label).map((shape) => `${shape.form} “${shape.label}”${shape.kind === "neutral" ? "" : ` (${called(shape.kind)})`}`);
    const parts = [header.title, ...lines, ...names.map((name) => `${name} ${words(numbers[s][name])}`)];
    if (state.pinned) parts.push(`pinned beside it: ${[brief(state.pinned), ...names.map((name) => `${name} ${words(numbers[other][name])}`)].join(", ")}`);
    if (marks.length) parts.push(marks.join(", "));
    if (data.heat) parts.push(`colours: ${header.heatName || "heat"} from ${coarse(header.heat.low)} to ${coarse(header.heat.high)}`);
    parts.push(`axes: ${scene.x[2]}, ${scene.y[2]}`);
    canvas.setAttribute("aria-label", `${parts.join(". ")}.`);
  }

  let pinned = null;
  let noted = null;
  function draw() {
    if (Boolean(pinned) !== Boolean(state.pinned) || ratio !== (window.devicePixelRatio || 1)) (pinned = state.pinned, measure());
    pinned = state.pinned;
    dials.forEach(({ input, output, text }, k) => {
      input.value = state.setting[k];
      if (text) return;
      output.textContent = words(value(k, state.setting));
      input.setAttribute("aria-valuetext", output.textContent);
    });
    scrub.input.value = state.step;
    if (moves) {
      clock.textContent = time();
      scrub.input.setAttribute("aria-valuetext", time());
    }
    compare.input.checked = state.pinned !== null;
    const chosen = hover ?? state.single;
    if (document.activeElement !== single.input || +single.input.value !== (chosen ?? -1) + 1) single.input.value = (chosen ?? -1) + 1;
    const text = JSON.stringify(state);
    if (text !== noted) note.value = noted = text; // so that a redraw leaves alone what is being typed
    say();
    root.dataset.setting = state.setting.join(",");
    root.dataset.step = state.step;
    root.dataset.drawn = ++count;
    if (!panels.length || !canvas.width || !canvas.height) return; // a page being laid out may give no room yet
    const ctx = canvas.getContext("2d");
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.drawImage(backdrop, 0, 0);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const panel of panels) panelOf(ctx, panel, panel.pinned ? state.pinned : state.setting);
    if (curve) drawCurve();
  }

  // Hover singles out the nearest path for as long as it lasts, a click keeps it
  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    const [mx, my] = [event.clientX - box.left, event.clientY - box.top];
    const panel = panels.find((one) => mx >= one.x && mx <= one.x + one.w && my >= one.y && my <= one.y + one.h);
    if (!panel || !data.n) return [null, mx, my];
    const s = at(panel.pinned ? state.pinned : state.setting);
    let [best, found] = [14 * 14, null];
    const test = (i, x, y) => {
      const d = (x - mx) ** 2 + (y - my) ** 2;
      if (d < best) [best, found] = [d, i];
    };
    for (const i of everyone) {
      const spot = head(panel, s, i);
      if (spot) test(i, spot[0], spot[1]);
      if (drawn === "none" || data.steps === 1) continue;
      const end = drawn === "all" ? data.last[s * data.n + i] : reach(s, i)[0];
      let from = null;
      for (let t = 0; t <= end; t++) {
        const p = ((s * data.n + i) * data.steps + t) * 2;
        const to = data.xy[p] === GONE ? null : [data.xy[p] * panel.qx + panel.ox, data.xy[p + 1] * panel.qy + panel.oy];
        if (from && to) {
          const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
          const k = Math.min(1, Math.max(0, ((mx - from[0]) * dx + (my - from[1]) * dy) / (dx * dx + dy * dy || 1)));
          test(i, from[0] + k * dx, from[1] + k * dy);
        }
        from = to;
      }
    }
    return [found, mx, my, s];
  }
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const [found, mx, my, s] = nearest(event);
    tip.hidden = found === null;
    if (found !== null) {
      tip.textContent = about(found, s);
      tip.style.left = `${Math.min(mx + 14, Math.max(4, canvas.clientWidth - tip.offsetWidth - 4))}px`;
      tip.style.top = `${my + 16}px`;
    }
    if (found !== hover) {
      hover = found;
      draw();
    }
  });
  canvas.addEventListener("pointerleave", () => {
    tip.hidden = true;
    if (hover !== null) {
      hover = null;
      draw();
    }
  });
  canvas.addEventListener("click", timed((event) => {
    const [found] = nearest(event);
    change({ single: found === state.single ? null : found });
  })); // prettier-ignore
  tip.hidden = true;

  // Theme: JupyterLab says which; elsewhere the system does
  const night = matchMedia("(prefers-color-scheme: dark)");
  function dress() {
    const told = document.body.dataset.jpThemeLight;
    const dark = told === undefined ? night.matches : told === "false";
    const fresh = dark && !matchMedia("print").matches ? THEMES.dark : THEMES.light;
    root.classList.toggle("sdk-dark", fresh === THEMES.dark);
    if (fresh === theme && panels.length) return;
    theme = fresh;
    fields = new Map();
    measure();
    draw();
  }
  const watch = new MutationObserver(dress);
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  night.addEventListener("change", dress);
  const sized = new ResizeObserver(() => {
    if (root.clientWidth === width && ratio === (window.devicePixelRatio || 1)) return;
    measure();
    draw();
  });
  sized.observe(root);
  const paper = matchMedia("print");
  paper.addEventListener("change", dress);

  model.on("change:state", followed);
  accept(model.get("state"), false);
  dress();
  return () => {
    pause();
    cancelAnimationFrame(queued);
    sized.disconnect();
    watch.disconnect();
    night.removeEventListener("change", dress);
    paper.removeEventListener("change", dress);
    model.off("change:state", followed);
  };
}

export default { render };
