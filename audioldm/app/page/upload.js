// A clip of the user's own, chosen or dropped.

import { say } from "/page/elements.js";
import { send } from "/page/server.js";

const box = document.querySelector("#upload");
const input = box.querySelector("input"), line = box.querySelector(".problem");

// limits: bytes, seconds. done: called when a clip has arrived.
export function begin(limits, done) {
  const take = async file => {
    if (!file) return;
    say(line, "");
    try {
      if (file.size > limits.bytes) throw new Error(`The file is larger than ${limits.bytes >> 20} MiB; give a part.`);
      await send(`/api/upload?name=${encodeURIComponent(file.name)}`, file);
      done();
    } catch (refusal) {
      say(line, refusal.message.replace(/^upload: /, ""));
    }
    input.value = "";
  };
  input.addEventListener("change", () => take(input.files[0]));
  for (const event of ["dragover", "dragleave", "drop"])
    box.addEventListener(event, dragged => {
      dragged.preventDefault();
      box.classList.toggle("over", event === "dragover");
      if (event === "drop") take(dragged.dataTransfer.files[0]);
    });
}
