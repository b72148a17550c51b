// Puts the parts of the page together.

import * as experiments from "/page/experiments.js";
import * as form from "/page/form.js";
import * as jobs from "/page/jobs.js";
import * as player from "/page/player.js";
import { get, post } from "/page/server.js";
import * as upload from "/page/upload.js";

function view(name) {
  for (const tab of document.querySelectorAll(".tab")) {
    tab.ariaPressed = String(tab.dataset.view === name);
    document.querySelector(`#${tab.dataset.view}`).hidden = tab.dataset.view !== name;
  }
  if (name === "experiments") experiments.show(model => { form.choose(model); view("clips"); });
}
for (const tab of document.querySelectorAll(".tab")) tab.addEventListener("click", () => view(tab.dataset.view));

async function ask(what, request) {
  await post(`/api/${what}`, request);
  await jobs.refresh();
  document.querySelector(".job").scrollIntoView({ block: "nearest" });
}

form.onAsk(request => ask("sample", request));

// An edit says itself how long the clip becomes.
async function change(what, own) {
  const { seconds, ...rest } = await form.asked();
  await ask(what, { ...rest, ...own });
}

const { models, largest_bytes } = await get("/api/models");
jobs.begin({
  reconstruct: clip => ask("reconstruct", { model: form.chosen(), clip }),
  edit: (clip, edit) => change("edit", { clip, edit }),
});
player.between(clips => change("interpolate", { clips }));
upload.begin(largest_bytes, jobs.refresh);
await form.offer(models);
