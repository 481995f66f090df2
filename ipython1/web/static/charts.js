// Line charts of what happened in each second. The numbers beside a chart say the same in words.

import { count, duration, element, put } from "./format.js";

const HEIGHT = 84;

export function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

// A canvas of the size it has on the screen, cleared, in CSS pixels.
export function surface(canvas, height) {
  const width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 5, 10].find((step) => step * power >= value * 0.999) * power;
}

export class Chart {
  // `lines`: [colour, name, value of a second (null: not known), whether it stays as it was until told otherwise]
  constructor(parent, title, lines, show, least = 0) {
    Object.assign(this, { title, lines, show, least });
    this.canvas = element("canvas", { role: "img", "aria-label": title });
    this.values = lines.map(([colour]) => element("span", { "data-mark": colour }));
    parent.append(element("figure", {}, element("figcaption", {}, element("b", {}, title), ...this.values), this.canvas));
  }

  draw(seconds, from, to, paint) {
    const { pen, width, height } = surface(this.canvas, HEIGHT);
    const left = 44, bottom = height - 3, top = 7;
    const series = this.lines.map(([, , value, stays]) => {
      const points = [];
      let last = stays ? null : 0;
      for (let second = from; second <= to; second++) {
        const bucket = seconds.get(second), found = bucket ? value(bucket) : null;
        if (found !== null) last = found;
        points.push(stays ? last : found ?? 0);
      }
      return points;
    });
    const most = nice(Math.max(this.least, ...series.flat().filter((v) => v !== null)));
    pen.font = "10px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const part of [0, 0.5, 1]) {
      const y = Math.round(bottom - part * (bottom - top)) + 0.5;
      pen.strokeStyle = paint("line");
      pen.beginPath();
      pen.moveTo(left, y);
      pen.lineTo(width, y);
      pen.stroke();
      pen.fillStyle = paint("soft");
      if (part !== 0.5) pen.fillText(this.show(part * most), left - 5, y - (part ? 0 : 3));
    }
    series.forEach((points, i) => {
      const [colour, name] = this.lines[i];
      pen.strokeStyle = pen.fillStyle = paint(colour);
      pen.lineWidth = 1.4;
      pen.lineJoin = "round";
      pen.beginPath();
      let began = false;
      points.forEach((value, k) => {
        if (value === null) return;
        const x = left + (k / Math.max(1, points.length - 1)) * (width - left);
        const y = bottom - (value / most) * (bottom - top);
        if (began) pen.lineTo(x, y);
        else pen.moveTo(x, y);
        began = true;
      });
      pen.stroke();
      const now = points.at(-1);
      put(this.values[i], `${now === null ? "–" : this.show(now)} ${name}`);
    });
    const words = this.values.map((value) => value.textContent).join(", ");
    this.canvas.setAttribute("aria-label", `${this.title}: now ${words}; the axis ends at ${this.show(most)}.`);
  }
}

// The charts of a dashboard; `at`: name of a field -> its place in a bucket.
export function charts(parent, at) {
  const mean = (bucket) => (bucket[at.commands] ? bucket[at.latency] / bucket[at.commands] : null);
  return [
    new Chart(parent, "Ended per second", [
      ["command", "commands", (b) => b[at.commands]],
      ["task", "tasks", (b) => b[at.tasks]],
      ["failed", "failed", (b) => b[at.failed]],
    ], count),
    new Chart(parent, "Time to result", [
      ["worst", "worst", (b) => (b[at.commands] ? b[at.worst] : null)],
      ["command", "mean", mean],
    ], (v) => (v ? duration(v).replace(".0 s", " s") : "0"), 0.001),
    new Chart(parent, "Engines that run", [["command", "", (b) => b[at.running], true]], count),
    new Chart(parent, "Waiting", [["worst", "", (b) => b[at.queued], true]], count),
  ];
}
