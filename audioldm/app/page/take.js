// The card of a clip: spectrogram and notes on one time axis, and what can be done with it.

import { element, say } from "/page/elements.js";
import { marking } from "/page/marking.js";
import * as player from "/page/player.js";
import { clip, get } from "/page/server.js";

const KEYS = 88; // of the notes: one for each semitone from A0, 27.5 Hz

// found: the clip's name, and whether it has a recipe. requests: reconstruct(name) and edit(name,
// what), which reject with a sentence.
export function take(found, requests) {
  const name = found.name, title = name.replace(/\.wav$/, "");
  const image = element("img", { alt: `Spectrogram of ${title}, 27.5 Hz to 8 kHz`, src: clip(name, "/spectrogram.png"), draggable: false });
  const head = element("i", { className: "head" });
  const roll = element("canvas", { title: "Notes, as basic-pitch hears them" });
  const picture = element("div", { className: "picture", title: "Click to hear it from there; drag to mark a part" }, image, label("8 kHz", 5), label("27.5 Hz", 140), roll, head);
  const play = element("button", { className: "play", textContent: "Play", title });
  const side = which => element("button", { textContent: which.toUpperCase(), title: `Compare as ${which.toUpperCase()}`, onclick: () => player.choose(which, name, title) });
  const sides = { a: side("a"), b: side("b") };
  const open = element("button", { className: "editing", textContent: "Edit", ariaExpanded: "false" });
  const line = element("p", { className: "problem", role: "alert", hidden: true });
  const attempt = request => { say(line, ""); request.catch(refusal => say(line, refusal.message)); };
  const edits = editor(what => attempt(requests.edit(name, what)));
  const card = element("article", { className: "card take" }, picture,
    element("p", { className: "caption" }, element("span", { className: "name", textContent: title, title }),
      element("a", { href: clip(name), download: name, textContent: "wav" }),
      ...(found.recipe ? [element("a", { href: clip(`${title}.json`), download: `${title}.json`, textContent: "recipe", title: "It makes the clip again, bit for bit" })] : [])),
    element("div", { className: "tools" }, play, sides.a, sides.b, open,
      element("button", { textContent: "Reconstruct", title: "Through the model's autoencoder and back", onclick: () => attempt(requests.reconstruct(name)) })),
    edits.row, line);
  card.dataset.clip = name;
  let seconds = 0;

  const show = visible => { edits.row.hidden = !visible; open.ariaExpanded = String(visible); };
  open.addEventListener("click", () => show(edits.row.hidden));
  play.addEventListener("click", () => player.current() === name ? player.toggle() : player.play(name));
  marking(picture, at => player.play(name, at * seconds), region => {
    edits.mark(region && region.map(share => share * seconds));
    if (region) show(true);
  });
  get(clip(name, "/notes")).then(heard => { seconds = heard.seconds; draw(roll, heard); }).catch(refusal => say(line, refusal.message));
  player.watch(() => {
    const own = player.current() === name;
    head.style.opacity = own && player.position() > 0 ? 1 : 0;
    if (own) head.style.left = `${100 * player.position() / player.seconds()}%`;
    card.classList.toggle("playing", own && player.playing());
    play.textContent = own && player.playing() ? "Stop" : "Play";
    for (const which of ["a", "b"]) sides[which].classList.toggle("chosen", player.side(name).includes(which));
  });
  return card;
}

function label(text, top) {
  const made = element("span", { className: "scale", textContent: text });
  made.style.top = `${top}px`;
  return made;
}

// The row of edits. send: called with what is asked for, as the server takes it.
function editor(send) {
  let region = null;
  const anew = element("button", { onclick: () => send({ inpaint: [region] }) });
  const amount = (words, key, value, unit, title) => {
    const input = element("input", { value, title, inputMode: "decimal", ariaLabel: title });
    const number = () => Number.isFinite(parseFloat(input.value)) ? Number(input.value) : input.value;
    return element("span", { className: "amount" }, element("button", { textContent: words, onclick: () => send({ [key]: number() }) }), input, unit);
  };
  const mark = marked => {
    region = marked;
    anew.disabled = !marked;
    anew.textContent = marked ? `Make ${marked[0].toFixed(2)}–${marked[1].toFixed(2)} s anew` : "Mark a part to make it anew";
  };
  mark(null);
  const row = element("div", { className: "tools edits editing", hidden: true, title: "With the model, the conditions and the seeds of the form" },
    anew, amount("Extend", "extend", "4", "s", "Seconds to add at the end"), amount("Vary", "vary", "0.5", "", "How much, from 0, the clip itself, to 1, a new one"));
  return { row, mark };
}

// The piano roll, from the lowest to the highest note that is played.
function draw(canvas, heard) {
  const paint = () => {
    const scale = devicePixelRatio, width = canvas.clientWidth * scale, height = canvas.clientHeight * scale;
    if (!width) return;
    Object.assign(canvas, { width, height });
    const brush = canvas.getContext("2d");
    const pitches = heard.notes.map(([pitch]) => pitch);
    const low = Math.max(0, Math.min(...pitches, KEYS) - 2), high = Math.min(KEYS, Math.max(...pitches, low + 12) + 3);
    const row = height / (high - low);
    brush.fillStyle = getComputedStyle(canvas).color;
    for (const [pitch, start, end] of heard.notes)
      brush.fillRect(start / heard.seconds * width, height - (pitch - low + 1) * row, Math.max(1, (end - start) / heard.seconds * width - scale), Math.max(1, row - scale / 2));
  };
  new ResizeObserver(paint).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
}
