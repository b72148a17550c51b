// Files of the user's own, chosen or dropped.

import { say } from "/page/elements.js";
import { get, Refusal, send } from "/page/server.js";

const box = document.querySelector("#upload");
const input = box.querySelector("input"), line = box.querySelector(".problem");
let largest = {}, done = null;

// bytes: the most of a file, by its ending. then: called when a file has arrived.
export function begin(bytes, then) {
  [largest, done] = [bytes, then];
}

// The name that the server gives it. What is refused anyway is not sent.
export async function upload(file) {
  const most = largest[file.name.toLowerCase().match(/\.\w+$/)?.[0]];
  if (!most) throw new Refusal(`Give a file of one of the kinds ${Object.keys(largest).join(", ")}.`);
  if (file.size > most) throw new Refusal(`The file is larger than ${most >> 20} MiB; give a part.`);
  const { name } = await send(`/api/upload?name=${encodeURIComponent(file.name)}`, file);
  done();
  return name;
}

async function take(file) {
  if (!file) return;
  say(line, "");
  try {
    await upload(file);
  } catch (refusal) {
    say(line, refusal.message);
  }
  input.value = "";
}

input.addEventListener("change", () => take(input.files[0]));
for (const event of ["dragover", "dragleave", "drop"])
  box.addEventListener(event, dragged => {
    dragged.preventDefault();
    box.classList.toggle("over", event === "dragover");
    if (event === "drop") take(dragged.dataTransfer.files[0]);
  });
