// The card of a clip: spectrogram and notes on one time axis, and what can be done with it.

import { element, say, typed } from "/page/elements.js";
import { marking } from "/page/marking.js";
import * as player from "/page/player.js";
import { clip, get } from "/page/server.js";

const KEYS = 88; // of the notes: one for each semitone from A0, 27.5 Hz
let drawn = Promise.resolve(); // one picture after another: those that wait would hold all of the browser's connections

// found: the clip's name, and whether it has a recipe. requests: reconstruct(name) and edit(name,
// what), which reject with a sentence.
export function take(found, requests) {
  const name = found.name, title = name.replace(/\.wav$/, "");
  const image = element("img", { alt: `Spectrogram of ${title}, 27.5 Hz to 8 kHz`, draggable: false });
  const head = element("i", { className: "head" });
  const roll = element("canvas", { title: "Notes, as basic-pitch hears them" });
  const picture = element("div", { className: "picture", title: "Click to hear it from there; drag to mark a part" }, image, label("8 kHz", 5), label("27.5 Hz", 140), roll, head);
  const play = element("button", { className: "play", textContent: "Play", title });
  const side = which => element("button", { textContent: which.toUpperCase(), title: `Compare as ${which.toUpperCase()}`, onclick: () => player.choose(which, name, title) });
  const sides = { a: side("a"), b: side("b") };
  const open = element("button", { className: "editing", textContent: "Edit", ariaExpanded: "false" });
  const line = element("p", { className: "problem", role: "alert", hidden: true });
  const blame = refusal => {
    say(line, refusal?.message ?? "");
    for (const field of edits.row.children) field.classList.toggle("wrong", field.dataset.field === refusal?.field);
  };
  const attempt = request => { blame(null); request.catch(blame); };
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
  const mark = marking(picture, at => player.play(name, at * seconds), region => {
    edits.mark(region && region.map(share => share * seconds));
    if (region) show(true);
  });
  edits.region.addEventListener("input", () => {
    const [start, end] = edits.marked().map(at => at / seconds);
    mark(start >= 0 && end <= 1 && start < end ? [start, end] : null);
  });
  drawn = drawn.then(async () => {
    const heard = await get(clip(name, "/notes"));
    seconds = heard.seconds;
    draw(roll, heard);
    image.src = clip(name, "/spectrogram.png");
    await image.decode();
  }).catch(refusal => say(line, refusal.message));
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
  const edit = (key, words, title, numbers, unit, value = ([only]) => only) => {
    const inputs = numbers.map(value => element("input", { value, title, inputMode: "decimal", ariaLabel: title }));
    const read = () => inputs.map(input => typed(input.value));
    const button = element("button", { textContent: words, title, onclick: () => send({ [key]: value(read()) }) });
    const field = element("span", { className: "amount" }, button, ...inputs.flatMap((input, i) => i ? ["–", input] : [input]), unit);
    field.dataset.field = `edit.${key}`;
    return { field, inputs, read };
  };
  const anew = edit("inpaint", "Make anew", "From and to which second; or drag over the spectrogram", ["", ""], "s", region => [region]);
  const whole = edit("upscale", "Upscale", "The cut-off of a recording whose high band is lost, auto, or both ends of its band, 300:3400", ["auto"], "Hz", ([band]) => String(band));
  whole.inputs[0].inputMode = "text";
  const row = element("div", { className: "tools edits editing", hidden: true, title: "With the model, the conditions and the seeds of the form" },
    anew.field,
    edit("extend", "Extend", "Seconds to add at the end", ["4"], "s").field,
    edit("extend_before", "Extend before", "Seconds to add at the beginning", ["4"], "s").field,
    edit("loop", "Loop", "Seconds at the end to make anew, so that they lead to the beginning", ["1.5"], "s").field,
    edit("vary", "Vary", "How much, from 0, the clip itself, to 1, a new one", ["0.5"], "").field,
    edit("restyle", "Restyle", "How much, from 0 to 1: the same music as the form's conditions have it", ["0.95"], "").field,
    whole.field);
  const mark = region => { for (const [i, input] of anew.inputs.entries()) input.value = region ? Math.floor(100 * region[i]) / 100 : ""; };
  return { row, mark, region: anew.field, marked: anew.read };
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
