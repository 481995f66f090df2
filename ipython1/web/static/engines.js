// The table of engines, and the tiles where there are many.

import { $, elapsed, element, mark, put, size } from "./format.js";

const TILES_FROM = 25;
const COLUMNS = [
  // name, title, class, value to sort by, text
  ["id", "id", "n", (e) => e.id, (e) => String(e.id)],
  ["host", "host", "", (e) => e.host, (e) => e.host],
  ["pid", "pid", "n", (e) => e.pid, (e) => (e.pid ? String(e.pid) : "")],
  ["state", "state", "state", (e) => e.state, (e) => (e.stuck ? "does not react" : e.state)],
  ["cpu", "CPU", "use", (e) => e.cpu ?? -1, (e) => (e.cpu === null ? "" : `${e.cpu.toFixed(0)} %`)],
  ["rss", "memory", "n", (e) => e.rss, (e) => (e.rss ? size(e.rss) : "")],
  ["running", "running", "command", (e) => e.running ?? "", (e) => e.running ?? ""],
  ["since", "for", "n", (e, now) => (e.running !== null || e.state !== "ready" ? now - e.since : -1),
    (e, now) => (e.running !== null || e.state !== "ready" ? elapsed(now - e.since) : "")],
  ["queue", "queue", "n", (e) => e.queue, (e) => String(e.queue)],
  ["restarts", "restarts", "n", (e) => e.restarts, (e) => String(e.restarts)],
];

const trouble = (engine) => engine.state !== "ready" || Boolean(engine.stuck);
const KINDS = { all: () => true, busy: (e) => e.running !== null, idle: (e) => e.running === null && !trouble(e), trouble };

export class EngineTable {
  constructor(engines, act) {
    Object.assign(this, { engines, act, rows: new Map(), tiles: new Map(), sort: 0, down: false, mayAct: false });
    this.body = $("table").tBodies[0];
    COLUMNS.forEach(([, title, kind], i) => {
      const button = element("button", { type: "button" }, title);
      const head = element("th", { scope: "col", class: kind });
      head.append(button);
      button.addEventListener("click", () => {
        this.down = this.sort === i && !this.down;
        this.sort = i;
        this.order();
      });
      $("table").tHead.rows[0].append(head);
    });
    $("find").addEventListener("input", () => this.order());
    $("show").addEventListener("change", () => this.order());
    for (const button of document.querySelectorAll(".actions button")) {
      button.addEventListener("click", () => this.act(button.dataset.action, this.shown.map((e) => e.id), true));
    }
    this.body.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-action]");
      if (button) this.act(button.dataset.action, [Number(button.closest("tr").dataset.id)], button.dataset.action === "restart");
    });
    $("tiles").addEventListener("click", (event) => this.go(Number(event.target.dataset.id)));
    $("tiles").addEventListener("keydown", (event) => this.key(event));
  }

  allow(mayAct) {
    this.mayAct = mayAct;
    document.querySelector(".actions").hidden = !mayAct;
    const head = $("table").tHead.rows[0];
    if (mayAct && head.cells.length === COLUMNS.length) head.append(element("th", { scope: "col" }, "do"));
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
  }

  update(changed, gone, now) {
    for (const id of gone) {
      for (const kept of [this.rows, this.tiles]) {
        kept.get(id)?.remove();
        kept.delete(id);
      }
    }
    for (const id of changed) this.fill(this.engines.get(id), now);
    if (changed.length || gone.length) this.order(now);
  }

  tick(now) {
    for (const engine of this.engines.values()) {
      if (engine.running === null && engine.state === "ready") continue;
      put(this.rows.get(engine.id).cells[7], COLUMNS[7][4](engine, now));
    }
  }

  fill(engine, now) {
    const row = this.rows.get(engine.id) ?? this.make(engine);
    mark(row, "state", engine.state);
    COLUMNS.forEach(([name, , , , text], i) => {
      const shown = text(engine, now), cell = row.cells[i];
      put(cell, shown);
      if (name === "running" && cell.title !== shown) cell.title = shown;
      if (name === "cpu") cell.style.setProperty("--use", Math.min(1, (engine.cpu ?? 0) / 100).toFixed(2));
    });
    const tile = this.tiles.get(engine.id) ?? this.tile(engine);
    mark(tile, "busy", engine.running !== null);
    mark(tile, "bad", trouble(engine));
    const label = `engine ${engine.id}, ${engine.state}${engine.running === null ? "" : `, runs ${engine.running}`}`;
    if (tile.title !== label) {
      tile.title = label;
      tile.setAttribute("aria-label", label);
    }
  }

  make(engine) {
    const row = element("tr", { "data-id": engine.id });
    COLUMNS.forEach(([name, , kind]) => row.append(name === "id" ? element("th", { scope: "row", class: kind, tabindex: -1 }) : element("td", { class: kind })));
    if (this.mayAct) {
      const buttons = [["interrupt", "Interrupt"], ["restart", "Restart"]].map(([action, text]) =>
        element("button", { type: "button", "data-action": action, "aria-label": `${text} engine ${engine.id}` }, text));
      row.append(element("td", {}, element("span", { class: "row-actions" }, ...buttons)));
    }
    this.rows.set(engine.id, row);
    return row;
  }

  tile(engine) {
    const tile = element("button", { type: "button", "data-id": engine.id, tabindex: -1 });
    this.tiles.set(engine.id, tile);
    return tile;
  }

  // Puts into the table what is asked for, in the order asked for; moves only what stands elsewhere.
  order(now = this.now) {
    this.now = now;
    const words = $("find").value.trim().toLowerCase(), kind = KINDS[$("show").value];
    const found = /^\d*$/.test(words) ? (e) => !words || String(e.id) === words
      : (e) => `${e.host} ${e.running ?? ""} ${e.state}`.toLowerCase().includes(words);
    const matches = (e) => kind(e) && found(e);
    const value = COLUMNS[this.sort][3], sign = this.down ? -1 : 1;
    const keyed = [...this.engines.values()].filter(matches).map((e) => [value(e, now), e]);
    keyed.sort(([a, x], [b, y]) => (a < b ? -sign : a > b ? sign : x.id - y.id));
    this.shown = keyed.map(([, engine]) => engine);
    const rows = this.shown.map((engine) => this.rows.get(engine.id));
    const wanted = new Set(rows);
    for (const row of [...this.body.rows]) if (!wanted.has(row)) row.remove();
    rows.forEach((row, i) => {
      if (this.body.rows[i] !== row) this.body.insertBefore(row, this.body.rows[i] ?? null);
    });
    [...$("table").tHead.rows[0].cells].forEach((cell, i) => {
      if (i === this.sort) cell.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    const all = this.engines.size;
    put($("shown"), this.shown.length === all ? "" : `${this.shown.length} of ${all}`);
    $("none").hidden = all > 0;
    $("table").hidden = all === 0;
    this.orderTiles();
  }

  orderTiles() {
    const box = $("tiles");
    box.hidden = this.engines.size < TILES_FROM;
    if (box.hidden || box.childElementCount === this.tiles.size) return;
    box.replaceChildren(...[...this.tiles].sort(([a], [b]) => a - b).map(([, tile]) => tile));
    box.firstElementChild.tabIndex = 0;
  }

  key(event) {
    const box = $("tiles"), perLine = Math.max(1, Math.floor((box.clientWidth + 3) / 16));
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perLine, ArrowDown: perLine }[event.key];
    if (!step) return;
    event.preventDefault();
    const tiles = [...box.children], next = tiles[tiles.indexOf(event.target) + step];
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  go(id) {
    const row = this.rows.get(id);
    if (!row?.isConnected) return;
    row.scrollIntoView({ block: "center" });
    row.cells[0].focus({ preventScroll: true });
  }
}
