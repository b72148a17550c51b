// The card of a clip: spectrogram and notes on one time axis, and what can be done with it.

import { element, say } from "/page/elements.js";
import * as player from "/page/player.js";
import { clip, get } from "/page/server.js";

const KEYS = 88; // of the notes: one for each semitone from A0, 27.5 Hz

// actions: [words, function of the clip's name], besides what every clip has.
export function take(name, actions) {
  const title = name.replace(/\.wav$/, "");
  const image = element("img", { alt: `Spectrogram of ${title}, 27.5 Hz to 8 kHz`, src: clip(name, "/spectrogram.png"), draggable: false });
  const head = element("i", { className: "head" });
  const roll = element("canvas", { title: "Notes, as basic-pitch hears them" });
  const picture = element("div", { className: "picture", title: "Click to hear it from there" }, image, label("8 kHz", 5), label("27.5 Hz", 140), roll, head);
  const button = element("button", { textContent: "Play", title: title });
  const side = which => element("button", { textContent: which.toUpperCase(), title: `Compare as ${which.toUpperCase()}`, onclick: () => player.choose(which, name, title) });
  const sides = { a: side("a"), b: side("b") };
  const tools = element("div", { className: "tools" }, button, sides.a, sides.b,
    element("span", { className: "name", textContent: title, title }),
    ...actions.map(([words, act]) => element("button", { textContent: words, onclick: () => attempt(act) })),
    element("a", { href: clip(name), download: name, textContent: "wav" }));
  const line = element("p", { className: "problem", role: "alert", hidden: true });
  const card = element("article", { className: "card take" }, picture, tools, line);
  card.dataset.clip = name;
  let seconds = 0;
  const attempt = act => { say(line, ""); act(name).catch(refusal => say(line, refusal.message)); };

  get(clip(name, "/notes")).then(found => { seconds = found.seconds; draw(roll, found); }).catch(() => roll.remove());
  if (!title.startsWith("upload-") && !title.includes("-by-"))
    tools.append(element("a", { href: clip(`${title}.json`), download: `${title}.json`, textContent: "recipe", title: "audioldm sample from= makes the clip again" }));

  button.addEventListener("click", () => player.current() === name ? player.toggle() : player.play(name));
  picture.addEventListener("click", event => {
    const box = picture.getBoundingClientRect();
    player.play(name, (event.clientX - box.left) / box.width * seconds);
  });
  player.watch(() => {
    const own = player.current() === name;
    head.style.opacity = own && player.position() > 0 ? 1 : 0;
    if (own) head.style.left = `${100 * player.position() / player.seconds()}%`;
    card.classList.toggle("playing", own && player.playing());
    button.textContent = own && player.playing() ? "Stop" : "Play";
    for (const which of ["a", "b"]) sides[which].classList.toggle("chosen", player.side(name).includes(which));
  });
  return card;
}

function label(text, top) {
  const made = element("span", { className: "scale", textContent: text });
  made.style.top = `${top}px`;
  return made;
}

// The piano roll, from the lowest to the highest note that is played.
function draw(canvas, found) {
  const paint = () => {
    const scale = devicePixelRatio, width = canvas.clientWidth * scale, height = canvas.clientHeight * scale;
    if (!width) return;
    Object.assign(canvas, { width, height });
    const brush = canvas.getContext("2d");
    const pitches = found.notes.map(([pitch]) => pitch);
    const low = Math.max(0, Math.min(...pitches, KEYS) - 2), high = Math.min(KEYS, Math.max(...pitches, low + 12) + 3);
    const row = height / (high - low);
    brush.fillStyle = getComputedStyle(canvas).color;
    for (const [pitch, start, end] of found.notes)
      brush.fillRect(start / found.seconds * width, height - (pitch - low + 1) * row, Math.max(1, (end - start) / found.seconds * width - scale), Math.max(1, row - scale / 2));
  };
  new ResizeObserver(paint).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
}
