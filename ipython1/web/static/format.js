// Numbers, times and elements. Whatever comes from the cluster goes into the page as text, never as markup.

export function size(bytes) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (bytes < 1000) return `${bytes.toFixed(unit === "B" || bytes >= 100 ? 0 : 1)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} GiB`;
}

export function duration(seconds) {
  seconds = Math.max(0, seconds);
  if (seconds < 1e-3) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toPrecision(seconds < 0.1 ? 2 : 3)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const total = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
  const h = Math.floor(total / 3600), m = Math.floor(total / 60) % 60, s = total % 60;
  return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

// The same of what still goes on, which is to be read while it changes.
export function elapsed(seconds) {
  return seconds < 1 ? `${Math.max(0, seconds).toFixed(1)} s` : duration(seconds);
}

export function count(number) {
  return Math.round(number).toLocaleString("en").replaceAll(",", "\u202f");
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
}

export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Sets text only where it differs: a screen reader hears of changes, and the browser lays out less.
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (node.dataset[name] !== String(value)) node.dataset[name] = value;
}

export const $ = (id) => document.getElementById(id);
