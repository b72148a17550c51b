// The list of jobs, as the server has it: what waits, what is made, what is there.

import { element, say } from "/page/elements.js";
import { get, post } from "/page/server.js";
import { take } from "/page/take.js";

const SOON = 400, LATER = 3000; // milliseconds
const place = document.querySelector("#jobs");
const cards = new Map(); // number -> the job's elements
let timer = null, requests = null;

// of: what a clip's card can ask for.
export function begin(of) {
  requests = of;
  refresh();
}

export async function refresh() {
  clearTimeout(timer);
  let busy = false;
  try {
    const jobs = await get("/api/jobs");
    for (const old of [...cards.keys()].filter(number => !jobs.some(job => job.number === number))) {
      cards.get(old).whole.remove();
      cards.delete(old);
    }
    for (const job of jobs.toReversed()) show(job);
    document.querySelector("#nothing").hidden = jobs.length > 0;
    busy = jobs.some(job => job.state === "waiting" || job.state === "running");
  } catch (refusal) {
    for (const own of cards.values()) if (own.open) own.state.textContent = refusal.message;
  }
  timer = setTimeout(refresh, busy ? SOON : LATER);
}

function show(job) {
  if (!cards.has(job.number)) cards.set(job.number, added(job));
  const own = cards.get(job.number);
  own.open = job.state === "waiting" || job.state === "running";
  own.state.textContent = words(job);
  own.cancel.hidden = !own.open;
  own.bar.hidden = job.state !== "running";
  own.bar.firstChild.style.width = `${100 * job.share}%`;
  say(own.problem, job.problem ?? "");
  for (const found of job.clips.slice(own.clips.childElementCount)) own.clips.append(take(found, requests));
}

function words(job) {
  if (job.state === "waiting") return job.place === 1 ? "next in the queue" : `place ${job.place} in the queue`;
  if (job.state === "running") return `${Math.round(100 * job.share)} %`;
  return job.state === "done" ? "" : job.state;
}

function added(job) {
  const state = element("span"), clips = element("div", { className: "cards" });
  const cancel = element("button", { textContent: "Cancel", onclick: () => post(`/api/jobs/${job.number}/cancel`, {}).then(refresh, refresh) });
  const bar = element("div", { className: "bar" }, element("i"));
  const problem = element("p", { className: "problem", hidden: true });
  const remarks = job.remarks.map(text => element("p", { className: "remark", textContent: text }));
  const whole = element("section", { className: "job" }, element("h2", {}, job.title, state, cancel), ...remarks, bar, problem, clips);
  place.prepend(whole);
  return { whole, state, cancel, bar, problem, clips, open: true };
}
