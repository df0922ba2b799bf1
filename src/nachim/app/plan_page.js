// The sliders of a plan's page: they change a setting, plan_model.js works it out, figures, cards and table follow.
// Where sliders were moved, the address says so after its #: a link or a reload keeps them.
"use strict";

const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const STEPS = 1000;
const NEIGHBOURS = 3;
// Models that cost more than so many times the cheapest are not drawn: they would hide what matters.
const DEAR = 10;

function short(value) {
  const [unit, prefix] = PREFIXES.find(([each]) => Math.abs(value) >= each) || [1, ""];
  return `${Number((value / unit).toPrecision(3))} ${prefix}`;
}

function money(value) {
  if (value === Infinity) return "cannot be served";
  if (value >= 1e7) return `$${short(value).replace("G", "B").replace(" ", "\u00a0")}`;
  return value >= 100 ? `$${Math.round(value).toLocaleString("en")}` : `$${Number(value.toPrecision(3))}`;
}

function power(value) {
  const [digits, exponent] = value.toExponential(2).split("e");
  const raised = String(Number(exponent)).replace(/./g, (each) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(each)]);
  return `${digits} × 10${raised}`;
}

// nachim.app.plan_tables.clock
function clock(hours) {
  const found = [[1 / 30, 3600, "s"], [2, 60, "min"], [72, 1, "h"]].find(([limit]) => hours < limit);
  const [, unit, word] = found || [0, 1 / 24, "days"];
  return `${Number((hours * unit).toPrecision(3))} ${word}`;
}

// nachim.app.figures.round_ticks
function roundTicks(facts, low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const decades = Array.from({ length: last - first + 1 }, (_, place) => first + place);
  const sets = facts.round.map((digits) => decades.flatMap((decade) => digits.map((digit) => Number(`${digit}e${decade}`)))
    .filter((value) => low / 1.1 <= value && value <= high * 1.1));
  const inside = sets.find((values) => values.length >= 4) || sets[sets.length - 1];
  return inside.filter((_, place) => place % (1 + Math.floor(inside.length / 12)) === 0);
}

// nachim.app.figures.spelt
function spelt(value) {
  if (value >= 1e-3 && value < 1e4) return String(Number(value.toPrecision(4)));
  const [digit, exponent] = value.toExponential(2).split("e");
  const raised = `10<sup>${Number(exponent)}</sup>`;
  return Number(digit) === 1 ? raised : `${Number(digit)}×${raised}`;
}

function tickMoney(value) {
  return value < 1e3 ? `$${Number(value.toPrecision(3))}` : `$${short(value).replace(" ", "").replace("G", "B")}`;
}

const SAID = {
  flops: power,
  served: (value) => (value === 0 ? "none" : `${short(value)}`),
  days: (value) => `${Number(value.toPrecision(3))}`,
  price: (value) => `$${Number(value.toPrecision(3))}`,
  mfu: (value) => `${Number((100 * value).toPrecision(3))} %`,
  unique: (value) => (value === null ? "without end" : `${short(value)}`),
};

// A slider's place (0 to STEPS) as its value, and back: logarithmic, an open end being none (0) or no limit (null).
function valueAt(knob, place) {
  if (knob.none === "low" && place === 0) return 0;
  if (knob.none === "high" && place === STEPS) return null;
  const value = Number((knob.low * (knob.high / knob.low) ** (place / STEPS)).toPrecision(4));
  return Math.min(knob.high, Math.max(knob.low, value));
}

function placeOf(knob, value) {
  if (value === null) return STEPS;
  if (value === 0) return 0;
  const place = Math.round((STEPS * Math.log(value / knob.low)) / Math.log(knob.high / knob.low));
  return Math.min(STEPS - (knob.none === "high"), Math.max(Number(knob.none === "low"), place));
}

function settingOf(facts, hash) {
  const said = new URLSearchParams(hash.replace(/^#/, ""));
  const setting = { ...facts.start };
  for (const knob of facts.knobs) {
    if (!said.has(knob.name)) continue;
    const value = Number(said.get(knob.name));
    if (said.get(knob.name) === "none") setting[knob.name] = knob.none === "low" ? 0 : knob.none ? null : setting[knob.name];
    else if (value >= knob.low && value <= knob.high) setting[knob.name] = value;
  }
  return setting;
}

function hashOf(facts, setting) {
  const moved = facts.knobs.filter((knob) => setting[knob.name] !== facts.start[knob.name]);
  return moved.map(({ name }) => `${name}=${setting[name] || "none"}`.replace("+", "")).join("&"); // a + is a blank there
}

function counted(value, what) {
  return `${short(value).trim()} ${what}`;
}

function sized(one) {
  return `${counted(one.shape.params, "parameters")}, ${counted(one.tokens, "tokens")}`;
}

function hover(found) {
  return found.map((one) => `${one.shape.name}: ${sized(one)}, ${one.loss.toFixed(4)} nat/token`);
}

function byName(name) {
  return (one, other) => one.shape[name] - other.shape[name];
}

// Traces of the figure `surface`, in the order of plan_figures.surface: {x, y, z, text} each.
function surfaceTraces(facts, setting) {
  const { x, tokens } = facts.grid;
  const { surface, unit } = facts.lossLaw;
  const loss = (scale, many) => surfaceLoss(surface, scale, effectiveTokens(facts, many, setting.unique));
  const line = x.map((scale) => ({ x: scale, y: setting.flops / (unit * scale) }));
  const least = Math.min(...line.map((one) => loss(one.x, one.y)));
  const within = line.filter((one) => loss(one.x, one.y) <= (1 + facts.epsilon) * least);
  const best = optimum(facts, setting);
  const mine = spent(facts, setting).filter((one) => one.shape.rank !== null);
  return [
    { x, y: tokens, z: tokens.map((many) => x.map((scale) => loss(scale, many))) },
    { x: line.map((one) => one.x), y: line.map((one) => one.y) },
    { x: within.map((one) => one.x), y: within.map((one) => one.y) },
    { x: mine.map((one) => one.shape.x), y: mine.map((one) => one.tokens), text: hover(mine) },
    { x: [best.lossX], y: [best.tokens], text: [`${counted(best.tokens, "tokens")}, ${best.loss.toFixed(4)} nat/token`] },
  ];
}

// Traces of plan_figures.isoflop.
function sliceTraces(facts, setting) {
  const { surface, unit } = facts.lossLaw;
  const line = facts.grid.x.map((x) => {
    const worth = effectiveTokens(facts, setting.flops / (unit * x), setting.unique);
    return { x, loss: surfaceLoss(surface, x, worth) };
  });
  const least = Math.min(...line.map((one) => one.loss));
  const best = optimum(facts, setting);
  const top = Math.max((1 + 8 * facts.epsilon) * least, (1 + facts.epsilon) * best.loss);
  const shown = line.filter((one) => one.loss <= top);
  const ends = [shown[0].x, shown[shown.length - 1].x];
  const real = spent(facts, setting);
  const around = real.filter((one) => one.loss <= top).sort(byName("x"));
  const mine = around.filter((one) => one.shape.rank !== null);
  const points = (found) => ({ x: found.map((one) => one.shape.x), y: found.map((one) => one.loss), text: hover(found) });
  const lower = Math.min(...real.map((one) => one.loss));
  const upper = (1 + facts.epsilon) * lower;
  return [
    { x: [ends[0], ends[1], ends[1], ends[0]], y: [lower, lower, upper, upper] },
    { x: shown.map((one) => one.x), y: shown.map((one) => one.loss) },
    points(around),
    points(mine),
    { x: [best.lossX], y: [best.loss], text: [`${counted(best.tokens, "tokens")}, ${best.loss.toFixed(4)} nat/token`] },
  ];
}

function twoModels(found, up) {
  const point = (one) => ({
    x: [one.shape.params],
    y: [one[up] === Infinity ? null : one[up]],
    text: [`${one.shape.name}: training ${money(one.train)}, serving ${money(one.serve)}`],
  });
  return [point(found.chinchilla), point(found.chosen)];
}

function drawn(found) {
  const kept = (one) => one === found.chinchilla || one.total <= DEAR * found.chosen.total;
  return found.curve.filter(kept).sort(byName("params"));
}

// Traces of plan_figures.cost.
function costTraces(facts, setting, found) {
  const curve = drawn(found);
  const many = curve.map((one) => one.tokens);
  const [low, high] = [Math.min(...many) / 1.3, Math.max(...many) * 1.3];
  const y = Array.from({ length: 24 }, (_, step) => low * (high / low) ** (step / 23));
  const dollars = (shape, tokens) => {
    const { total } = costed(facts, shape, tokens, setting);
    return total === Infinity ? null : Math.log10(total);
  };
  const x = curve.map((one) => one.shape.params);
  const z = y.map((tokens) => curve.map((one) => dollars(one.shape, tokens)));
  const ticks = roundTicks(facts, ...ends([{ z: z.flat() }], "z").map((value) => 10 ** value));
  const bar = { "colorbar.tickvals": ticks.map(Math.log10), "colorbar.ticktext": ticks.map(tickMoney) };
  return [{ x, y, z, ...bar }, { x, y: many }, ...twoModels(found, "tokens")];
}

// Traces of plan_figures.split.
function splitTraces(found) {
  const curve = drawn(found);
  const line = (name) => ({
    x: curve.map((one) => one.shape.params),
    y: curve.map((one) => (one[name] > 0 && one[name] !== Infinity ? one[name] : null)),
  });
  return [line("train"), line("serve"), line("total"), ...twoModels(found, "total")];
}

function edge(facts, shape) {
  const { shapes } = facts;
  if (shape === shapes[shapes.length - 1]) return "; the largest looked at";
  return shape === shapes[0] ? "; the smallest looked at" : "";
}

// What the cards say: [what, number, note].
function answers(facts, setting, found) {
  const best = optimum(facts, setting);
  const design = bestDesign(facts, setting);
  const hours = deviceHours(facts, design.shape, design.tokens, setting);
  const { count, name } = facts.device;
  const epochs = setting.unique === null ? "all fresh" : `${Number((design.tokens / setting.unique).toPrecision(3))} epochs`;
  const cards = [
    ["the law's optimum", `${short(best.flopsPerToken)}FLOP/token`, `${counted(best.tokens, "tokens")}, loss ${best.loss.toFixed(4)}`],
    ["shape to train", design.shape.name, `${sized(design)}, ${epochs}${edge(facts, design.shape)}`],
    ["its loss", `${design.loss.toFixed(4)} nat/token`, `by the law ${facts.lossLaw.name}`],
    ["training it", money(trainDollars(facts, design.shape, design.tokens, setting)), `${clock(hours / count)} on ${count} × ${name}`],
  ];
  if (!found) return [...cards, ["serving", "cannot be served", "no shape meets the demand"]];
  if (setting.served === 0) return cards;
  const { chosen, chinchilla } = found;
  const saved = chinchilla.total === Infinity ? "the other cannot be served" : `${money(chinchilla.total - chosen.total)} less than Chinchilla's`;
  const even = found.breakEven === null ? "no break-even: one is cheaper always" : `cheaper from ${counted(found.breakEven, "tokens")} served`;
  return [
    ...cards,
    ["cheapest in all at that loss", chosen.shape.name, `${sized(chosen)}; ${even}`],
    ["training and serving it", money(chosen.total), `${money(chosen.train)} + ${money(chosen.serve)}; ${saved}`],
    ["cheapest to train (Chinchilla)", chinchilla.shape.name, `${sized(chinchilla)}; ${money(chinchilla.train)} + ${money(chinchilla.serve)}`],
  ];
}

// The models of the break-even table: the two that matter, and shapes about a factor of two apart around them.
function rivals(found) {
  const curve = found.curve.filter((one) => one.serve !== Infinity);
  const near = (params) => curve.reduce((one, other) => {
    const off = (each) => Math.abs(Math.log(each.shape.params / params));
    return off(other) < off(one) ? other : one;
  });
  const sizes = Array.from({ length: NEIGHBOURS }, (_, step) => found.chosen.shape.params * 2 ** (step - 1));
  const kept = new Set([found.chosen, near(found.chinchilla.shape.params), ...sizes.map(near)]);
  return [...kept].sort(byName("params"));
}

function element(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function showCards(cards) {
  document.getElementById("answers").replaceChildren(...cards.map((entry) => {
    const card = element("div", "", "card");
    card.append(...["span", "b", "small"].map((tag, place) => element(tag, entry[place])));
    return card;
  }));
}

function showBreakEven(facts, setting, found) {
  const table = document.getElementById("breakeven");
  if (!found) return table.replaceChildren();
  const models = rivals(found);
  const row = (cells, tag) => {
    const made = document.createElement("tr");
    made.append(...cells.map((cell, place) => element(tag, cell, place ? "n" : "")));
    return made;
  };
  const cell = (one, other) => {
    if (one === other) return "";
    const even = breakEven(facts, one, other, setting);
    if (even === null) return one.train <= other.train ? "always" : "never";
    return one.train > other.train ? `from ${short(even)}` : `up to ${short(even)}`;
  };
  const label = (one) => `${one.shape.name}${one === found.chosen ? " ★" : ""}`;
  table.replaceChildren(
    row(["cheaper in all than", ...models.map(label)], "th"),
    ...models.map((one) => row([label(one), ...models.map((other) => cell(one, other))], "td")),
  );
}

// Values between the least and the greatest of all traces' `axis`; a surface's values are logarithms.
function ends(traces, axis) {
  const values = traces.flatMap((trace) => trace[axis] || []).filter((value) => value !== null);
  return [Math.min(...values), Math.max(...values)];
}

// The figure `name` with these traces, and round ticks on its logarithmic axes: {axis: how a value is spelt}.
function fill(facts, name, traces, axes) {
  const keys = [...new Set(traces.flatMap(Object.keys))];
  const update = Object.fromEntries(keys.map((key) => [key, traces.map((trace) => trace[key])]));
  const layout = {};
  for (const [axis, spelling] of Object.entries(axes)) {
    const ticks = roundTicks(facts, ...ends(traces, axis));
    layout[`${axis}axis.tickvals`] = ticks;
    layout[`${axis}axis.ticktext`] = ticks.map(spelling);
  }
  Plotly.update(name, update, layout, traces.map((_, place) => place));
}

function show(facts, setting) {
  const found = deployment(facts, setting);
  showCards(answers(facts, setting, found));
  showBreakEven(facts, setting, found);
  fill(facts, "surface", surfaceTraces(facts, setting), {});
  fill(facts, "slice", sliceTraces(facts, setting), { x: spelt });
  document.getElementById("money").hidden = !found;
  if (!found) return;
  fill(facts, "cost", costTraces(facts, setting, found), { x: spelt, y: spelt });
  fill(facts, "split", splitTraces(found), { x: spelt, y: tickMoney });
}

function start(facts) {
  let setting = settingOf(facts, location.hash);
  let waiting = false;
  const inputs = {};
  const refresh = () => {
    for (const knob of facts.knobs) {
      inputs[knob.name].input.value = placeOf(knob, setting[knob.name]);
      inputs[knob.name].output.textContent = SAID[knob.name](setting[knob.name]);
    }
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      show(facts, setting);
    });
  };
  const change = (changed) => {
    setting = changed;
    const hash = hashOf(facts, setting);
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname);
    refresh();
  };
  const labels = facts.knobs.map((knob) => {
    const [label, output, input] = ["label", "output", "input"].map((tag) => document.createElement(tag));
    Object.assign(input, { type: "range", min: 0, max: STEPS, step: 1, name: knob.name });
    input.addEventListener("input", () => change({ ...setting, [knob.name]: valueAt(knob, Number(input.value)) }));
    label.append(element("span", knob.label), output, input);
    inputs[knob.name] = { input, output };
    return label;
  });
  document.getElementById("knobs").replaceChildren(...labels);
  document.getElementById("reset").addEventListener("click", () => change({ ...facts.start }));
  window.addEventListener("hashchange", () => {
    setting = settingOf(facts, location.hash);
    refresh();
  });
  refresh();
}
