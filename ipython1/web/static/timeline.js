// What ran where: a row for each engine, time to the right.

import { colours, surface } from "./charts.js";
import { $, clock, duration, plural, put } from "./format.js";

const LEFT = 44;
const KEPT = 20000;

export class Timeline {
  constructor(engines) {
    this.engines = engines; // Map of id -> engine
    this.spans = new Map(); // by serial number
    this.at = {};
    this.box = $("timeline");
    this.canvas = this.box.querySelector("canvas");
    this.chosen = null;
    this.box.addEventListener("mousemove", (event) => this.point(event));
    this.box.addEventListener("mouseleave", () => this.choose(null));
    this.box.addEventListener("keydown", (event) => this.key(event));
  }

  reset(fields) {
    this.spans.clear();
    this.at = Object.fromEntries(fields.map((name, i) => [name, i]));
  }

  add(spans) {
    for (const span of spans) this.spans.set(span[this.at.serial], span);
    for (const serial of this.spans.keys()) {
      if (this.spans.size <= KEPT) break;
      this.spans.delete(serial);
    }
  }

  // What is to be seen between two times, with what runs now, as plain objects.
  visible(from, now) {
    const found = [], { at } = this;
    for (const span of this.spans.values()) {
      if (span[at.completed] < from) continue;
      found.push(Object.fromEntries(Object.entries(at).map(([name, i]) => [name, span[i]])));
    }
    for (const engine of this.engines.values()) {
      if (engine.running === null) continue;
      found.push({ serial: `r${engine.id}`, engine: engine.id, id: "", label: engine.running, started: Math.min(engine.since, now),
        completed: now, busy: now - engine.since, status: "running", count: 1, failed: 0, kind: "running" });
    }
    return found;
  }

  draw(from, now) {
    const ids = [...new Set([...this.engines.keys()])].sort((a, b) => a - b);
    const paint = colours();
    const row = ids.length > 150 ? 3 : ids.length > 50 ? 6 : ids.length > 16 ? 10 : 16;
    const { pen, width, height } = surface(this.canvas, Math.max(1, ids.length * row));
    this.canvas.style.height = `${height}px`;
    const x = (time) => LEFT + ((time - from) / (now - from)) * (width - LEFT);
    const places = new Map(ids.map((id, i) => [id, i]));
    this.shown = this.visible(from, now).filter((span) => places.has(span.engine));
    Object.assign(this, { row, ids, places, x });
    pen.font = "10px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const every = Math.ceil(12 / row) * (row < 12 ? 5 : 1);
    ids.forEach((id, i) => {
      pen.fillStyle = paint("line");
      if (row > 3) pen.fillRect(LEFT, (i + 1) * row - 1, width - LEFT, 1);
      pen.fillStyle = paint("soft");
      if (i % every === 0) pen.fillText(id, LEFT - 6, Math.max(6, (i + 0.5) * row));
    });
    const gap = row > 6 ? 2 : row > 3 ? 1 : 0;
    for (const span of this.shown) {
      const left = Math.max(LEFT, x(span.started)), right = Math.max(left + 1, x(span.completed));
      const top = places.get(span.engine) * row + gap, high = row - 2 * gap - (row > 3 ? 1 : 0);
      // The rest of what many short ones share is pale: the engine was idle between them.
      const long = span.completed - span.started;
      pen.globalAlpha = span.count > 1 && long > 0 ? 0.35 + 0.65 * Math.min(1, span.busy / long) : 1;
      pen.fillStyle = paint(span.kind);
      pen.fillRect(left, top, right - left, high);
      pen.globalAlpha = 1;
      if (span.failed) {
        pen.fillStyle = paint("failed");
        pen.fillRect(left, top, Math.max(2, (right - left) * (span.failed / span.count)), high);
      }
      if (span.serial === this.chosen) {
        pen.strokeStyle = paint("ink");
        pen.strokeRect(left + 0.5, top + 0.5, Math.max(1, right - left - 1), high - 1);
      }
    }
    this.axis(from, now, paint);
  }

  axis(from, now, paint) {
    const { pen, width } = surface($("axis"), 18);
    const step = [10, 30, 60, 120].find((each) => ((width - LEFT) / (now - from)) * each > 70) ?? 300;
    pen.font = "10px system-ui, sans-serif";
    pen.textAlign = "center";
    for (let time = Math.ceil(from / step) * step; time <= now; time += step) {
      const at = LEFT + ((time - from) / (now - from)) * (width - LEFT);
      pen.fillStyle = paint("line");
      pen.fillRect(Math.round(at), 0, 1, 4);
      pen.fillStyle = paint("soft");
      if (at > LEFT + 20 && at < width - 24) pen.fillText(clock(time), at, 14);
    }
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect(), mouse = event.clientX - box.left;
    const id = this.ids?.[Math.floor((event.clientY - box.top) / this.row)];
    let best = null, near = 4;
    for (const span of this.shown ?? []) {
      if (span.engine !== id) continue;
      const off = Math.max(this.x(span.started) - mouse, mouse - Math.max(this.x(span.completed), this.x(span.started) + 1), 0);
      if (off < near) [best, near] = [span, off];
    }
    this.choose(best);
  }

  choose(span) {
    this.chosen = span?.serial ?? null;
    put($("span"), span ? describe(span) : "Point at something to see what it was.");
    this.onchoose?.();
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !this.shown?.length) return;
    event.preventDefault();
    const present = this.shown.find((span) => span.serial === this.chosen) ?? this.shown.at(-1);
    const of = (id) => this.shown.filter((span) => span.engine === id).sort((a, b) => a.started - b.started);
    let next = present;
    if (step[0]) {
      const line = of(present.engine);
      next = line[line.findIndex((span) => span.serial === present.serial) + step[0]] ?? present;
    } else {
      for (let i = this.places.get(present.engine) + step[1]; i >= 0 && i < this.ids.length; i += step[1]) {
        const line = of(this.ids[i]);
        if (!line.length) continue;
        next = line.reduce((a, b) => (Math.abs(b.started - present.started) < Math.abs(a.started - present.started) ? b : a));
        break;
      }
    }
    this.choose(next);
  }
}

function describe(span) {
  const what = span.count > 1 ? `${plural(span.count, span.kind)} “${span.label}”` : `“${span.label}”`;
  const took = span.count > 1 ? `${duration(span.busy / span.count)} each` : duration(span.completed - span.started);
  const how = { ok: "", running: ", runs", error: span.count > 1 ? `, ${span.failed} failed` : ", failed",
    died: ", the engine died", rejected: ", rejected here" }[span.status] ?? "";
  return `Engine ${span.engine}, ${clock(span.started)}: ${what}, ${took}${how}${span.id ? ` (${span.id})` : ""}`;
}
