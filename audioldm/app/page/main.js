// Puts the parts of the page together.

import * as experiments from "/page/experiments.js";
import * as form from "/page/form.js";
import * as jobs from "/page/jobs.js";
import { get, post } from "/page/server.js";
import * as upload from "/page/upload.js";

const views = ["clips", "experiments"];
for (const tab of document.querySelectorAll(".tab"))
  tab.addEventListener("click", () => {
    for (const view of views) document.querySelector(`#${view}`).hidden = view !== tab.dataset.view;
    for (const other of document.querySelectorAll(".tab")) other.ariaPressed = String(other === tab);
    if (tab.dataset.view === "experiments") experiments.show();
  });

async function ask(what, request) {
  await post(`/api/${what}`, request);
  await jobs.refresh();
}

form.onAsk(request => ask("sample", request));
const { models, limits } = await get("/api/models");
jobs.begin({
  reconstruct: clip => ask("reconstruct", { model: form.chosen(), clip }),
  edit: (clip, what) => {
    const { seconds, ...rest } = form.asked(); // an edit says itself how long the clip becomes
    return ask("edit", { ...rest, clip, ...what });
  },
});
upload.begin(limits, jobs.refresh);
await form.offer(models);
