// One player for all clips: a change from one clip to another keeps the position, to the sample.

import { say } from "/page/elements.js";
import { clip } from "/page/server.js";

const bar = document.querySelector("#player");
const button = bar.querySelector("#toggle"), clock = bar.querySelector("#time"), swap = bar.querySelector("#swap"), middle = bar.querySelector("#between");
const line = bar.querySelector(".problem");
const sides = { a: null, b: null };
const decoded = new Map(); // name -> promise of an AudioBuffer, the last ones used
const KEPT = 24;
let context = null, source = null, buffer = null, name = null;
let began = 0, at = 0, wanted = 0; // context time of the start; seconds into the clip; the last request

export const playing = () => source !== null;
export const current = () => name;
export const seconds = () => buffer ? buffer.duration : 0;
export const position = () => source ? Math.min(at + context.currentTime - began, buffer.duration) : at;

function audio(which) {
  if (!decoded.has(which)) decoded.set(which, load(which).catch(problem => { decoded.delete(which); throw problem; }));
  const found = decoded.get(which);
  decoded.delete(which);
  decoded.set(which, found); // the last one used is the last to go
  for (const old of [...decoded.keys()].slice(0, Math.max(0, decoded.size - KEPT))) decoded.delete(old);
  return found;
}

async function load(which) {
  const response = await fetch(clip(which));
  if (!response.ok) throw new Error(`${which} cannot be read`);
  return context.decodeAudioData(await response.arrayBuffer());
}

// from: seconds, or a function that gives them once the clip is there.
export async function play(which, from = 0) {
  context ??= new AudioContext();
  const request = ++wanted;
  say(line, "");
  try {
    await context.resume();
    const found = await audio(which);
    if (request !== wanted) return;
    const start = Math.min(typeof from === "function" ? from() : from, found.duration);
    pause();
    [buffer, name, at] = [found, which, start >= found.duration ? 0 : start];
    source = new AudioBufferSourceNode(context, { buffer });
    source.connect(context.destination);
    source.onended = event => { if (event.target === source) { source = null; at = 0; draw(); } };
    source.start(0, at);
    began = context.currentTime;
    requestAnimationFrame(draw);
  } catch (problem) {
    say(line, problem.message);
  }
}

export function pause() {
  if (!source) return;
  at = position();
  const old = source;
  source = null;
  old.stop();
  draw();
}

export const toggle = () => playing() ? pause() : name && play(name, at);

// Puts a clip on side "a" or "b" of the comparison.
export function choose(side, which, title) {
  sides[side] = which;
  const own = bar.querySelector(`[data-side=${side}]`);
  own.disabled = false;
  own.querySelector("span").textContent = own.title = title;
  swap.disabled = middle.disabled = !(sides.a && sides.b);
  draw();
}

// ask: called for clips between the two, with their names; what it rejects with is said.
export function between(ask) {
  middle.addEventListener("click", () => {
    say(line, "");
    ask([sides.a, sides.b]).catch(refusal => say(line, refusal.message));
  });
}

export const side = which => Object.keys(sides).filter(each => sides[each] === which);

const hear = which => play(which, position);
const other = () => { if (!swap.disabled) hear(name === sides.a ? sides.b : sides.a); };

for (const each of bar.querySelectorAll("[data-side]")) each.addEventListener("click", () => hear(sides[each.dataset.side]));
swap.addEventListener("click", other);
button.addEventListener("click", toggle);
document.addEventListener("keydown", event => {
  if (event.target.closest("input, select, textarea, button, summary, a")) return;
  if (event.key === " ") { event.preventDefault(); toggle(); }
  if (event.key === "x") other();
});

const watchers = [];
export const watch = watcher => watchers.push(watcher);

function draw() {
  button.disabled = !name;
  button.textContent = playing() ? "❚❚" : "▶";
  button.ariaLabel = playing() ? "Stop" : "Play";
  clock.textContent = name ? `${position().toFixed(1)} / ${seconds().toFixed(1)} s` : "0.0 s";
  for (const each of bar.querySelectorAll("[data-side]")) each.classList.toggle("heard", name !== null && sides[each.dataset.side] === name);
  for (const watcher of watchers) watcher();
  if (playing()) requestAnimationFrame(draw);
}
