// The page: takes the state and its changes as server-sent events, and shows them.

import { charts, colours } from "./charts.js";
import { EngineTable } from "./engines.js";
import { $, clock, count, element, mark, plural, put, size } from "./format.js";
import { Timeline } from "./timeline.js";

const LINES_KEPT = 500;
const SILENCE = 5000; // milliseconds without a word after which the controller counts as lost

if (location.search) history.replaceState(null, "", "/");

const engines = new Map();
const seconds = new Map(); // second -> bucket of rates
const incidents = [];
let state = null, offset = 0, heard = 0, serial = 0, drawn = [], asked = false;

const now = () => Date.now() / 1000 + offset;
const timeline = new Timeline(engines);
const table = new EngineTable(engines, act);
timeline.onchoose = draw;

// -- what comes ----------------------------------------------------------------------

const source = new EventSource("events");
source.addEventListener("state", (event) => take(JSON.parse(event.data), true));
source.addEventListener("change", (event) => take(JSON.parse(event.data), false));
source.addEventListener("error", () => lost(source.readyState === EventSource.CLOSED));

function take(news, whole) {
  if (whole) begin(news);
  else if (!state) return;
  heard = Date.now();
  offset = news.time - heard / 1000;
  mark($("link"), "state", "live");
  put($("link"), "live");
  for (const name of ["tasks", "totals", "links"]) if (news[name]) state[name] = news[name];
  const gone = news.gone ?? [], changed = news.engines ?? [];
  for (const id of gone) engines.delete(id);
  for (const engine of changed) engines.set(engine.id, engine);
  table.update(changed.map((engine) => engine.id), gone, now());
  for (const bucket of news.rates ?? []) seconds.set(bucket[0], bucket);
  for (const second of seconds.keys()) if (second < now() - 700) seconds.delete(second);
  timeline.add(news.spans ?? []);
  if (news.incidents) tell(news.incidents);
  if (news.output) print(news.output);
  if (news.links || whole) links();
  summary();
  draw();
}

function begin(news) {
  const gone = [...engines.keys()];
  state = news;
  engines.clear();
  table.update([], gone, now());
  table.allow(news.may_act);
  seconds.clear();
  incidents.length = 0;
  serial = 0;
  $("log").replaceChildren($("log").querySelector(".empty") ?? "");
  timeline.reset(news.fields.spans);
  put($("cluster"), news.cluster);
  document.title = `${news.cluster} – ipython1`;
  $("output").hidden = !news.may_act;
  if (!drawn.length) {
    const at = Object.fromEntries(news.fields.rates.map((name, i) => [name, i]));
    drawn = charts($("rates"), at);
    if (news.engines.length > 50) $("window").value = "60"; // what is sent of so many does not go back further
  }
}

function lost(closed) {
  mark($("link"), "state", "away");
  put($("link"), closed ? "The controller has ended the page; open it with the address that ipcluster printed." :
    "The controller does not answer; this is what it said last.");
}

setInterval(() => {
  if (heard && Date.now() - heard > SILENCE) lost(false);
  else if (state) table.tick(now());
}, 500);

// -- what is shown -------------------------------------------------------------------

function summary() {
  const all = [...engines.values()], { tasks, totals } = state;
  const ready = all.filter((engine) => engine.state === "ready").length;
  const queued = all.reduce((sum, engine) => sum + engine.queue, 0) + tasks.ready;
  const tiles = [
    ["engines", count(all.length), ready < all.length ? `${all.length - ready} not ready` : "", ready < all.length],
    ["running", count(all.filter((engine) => engine.running !== null).length)],
    ["waiting", count(queued), tasks.blocked ? `+ ${count(tasks.blocked)} blocked` : ""],
    ["commands ended", count(totals.commands)],
    ["tasks ended", count(totals.tasks)],
    ["failed", count(totals.failed)],
    ["engine deaths", count(totals.died), "", totals.died > 0],
  ];
  const box = $("summary");
  tiles.forEach(([name, value, more = "", bad = false], i) => {
    const tile = box.children[i] ?? box.appendChild(
      element("div", {}, element("dt", {}, name), element("dd", {}, element("span"), " ", element("small"))));
    mark(tile, "bad", bad);
    put(tile.querySelector("span"), value);
    put(tile.querySelector("small"), more);
  });
}

function draw() {
  if (asked || !state) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    const span = Number($("window").value), end = now(), paint = colours();
    const last = Math.floor(end) - 1; // the present second is not over
    for (const chart of drawn) {
      if (chart.title === "Engines that run") chart.least = engines.size;
      chart.draw(seconds, last - span + 1, last, paint);
    }
    timeline.draw(end - span, end);
  });
}

function tell(news) {
  for (const incident of news) {
    if (incident.serial <= serial) continue;
    serial = incident.serial;
    incidents.push(incident);
    const who = incident.engine < 0 ? "" : String(incident.engine);
    const row = element("tr", {}, element("td", {}, clock(incident.time)), element("td", { class: "n" }, who),
      element("td", {}, incident.what), element("td", { class: "cause", title: incident.text }, incident.text));
    if (["died", "failed to start", "given up"].includes(incident.what)) row.cells[2].className = "bad";
    $("incidents").prepend(row);
    if ($("incidents").rows.length > 200) $("incidents").lastElementChild.remove();
  }
  $("no-incidents").hidden = incidents.length > 0;
  $("incidents").closest(".scroll").hidden = !incidents.length;
}

function links() {
  const { counts, rows } = state.links;
  put($("counts"), Object.entries(counts).map(([kind, c]) => {
    const number = c.linked + c.away;
    const word = { multiengine: "client", task: "task client", view: "viewer" }[kind] ?? kind;
    const named = word.endsWith("y") && number !== 1 ? `${number} ${word.slice(0, -1)}ies` : plural(number, word);
    return `${named}${c.away ? ` (${c.away} away)` : ""}`;
  }).join(", ") || "None.");
  $("links").replaceChildren(...rows.map((row) => element("tr", {}, element("td", {}, row.kind), element("td", {}, row.name), element("td", {}, row.host),
    element("td", row.away ? { class: "bad" } : {}, row.away ? `away since ${clock(row.away)}` : "linked"), element("td", { class: "n" }, size(row.waiting)))));
  $("links").closest(".scroll").hidden = !rows.length;
}

// -- output ---------------------------------------------------------------------------

const seen = new Set();
function print(chunks) {
  if (!chunks.length) return;
  const log = $("log"), down = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
  const at = Object.fromEntries(state.fields.output.map((name, i) => [name, i]));
  log.querySelector(".empty")?.remove();
  for (const chunk of chunks) {
    const id = chunk[at.engine], kind = chunk[at.kind];
    if (!seen.has(id)) {
      seen.add(id);
      const options = [...seen].sort((a, b) => a - b).map((each) => element("option", { value: each }, `engine ${each}`));
      const chosen = $("whose").value;
      $("whose").replaceChildren(element("option", { value: "" }, "all engines"), ...options);
      $("whose").value = chosen;
    }
    const name = `[${id}${kind === "stderr" ? " stderr" : ""}]`;
    const text = (chunk[at.cut] ? "…" : "") + chunk[at.text].replace(/\n$/, "");
    log.append(element("div", { "data-id": id, "data-kind": kind }, element("b", {}, name), element("span", {}, text)));
  }
  while (log.childElementCount > LINES_KEPT) log.firstElementChild.remove();
  choose();
  if (down) log.scrollTop = log.scrollHeight;
}

function choose() {
  const whose = $("whose").value;
  for (const line of $("log").children) line.hidden = whose !== "" && line.dataset.id !== whose;
}

// -- what is done -------------------------------------------------------------------------

let decide = () => {};
$("sure-yes").addEventListener("click", () => decide(true));
$("sure-no").addEventListener("click", () => decide(false));
$("sure").addEventListener("cancel", () => decide(false)); // Escape

function sure(text, action) {
  decide(false); // what was asked before, should it not be answered
  put($("sure-text"), text);
  put($("sure-yes"), action);
  return new Promise((resolve) => {
    decide = resolve;
    $("sure").showModal();
  });
}

async function act(action, ids, ask) {
  if (!ids.length) return;
  const whom = ids.length === 1 ? `engine ${ids[0]}` : `${ids.length} engines`;
  const name = { interrupt: "Interrupt", restart: "Restart" }[action];
  const lose = action === "restart" ? (ids.length === 1 ? " Its namespace is lost." : " Their namespaces are lost.") : "";
  if (ask && !(await sure(`${name} ${whom}?${lose}`, name))) return;
  let said;
  try {
    const answer = await fetch(action, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ engines: ids }) });
    said = answer.ok ? `${name} of ${whom}: sent at ${clock(now())}` : (await answer.text()).trim();
  } catch {
    said = "The controller does not answer.";
  }
  put($("note"), said);
}

$("whose").addEventListener("change", choose);
$("window").addEventListener("change", draw);
window.addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
