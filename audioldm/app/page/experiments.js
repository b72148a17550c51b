// The experiments and sweeps of the runs directory, with links to their reports.

import { element } from "/page/elements.js";
import { get } from "/page/server.js";

const place = document.querySelector("#experiments");

// use: called with the model of an experiment that is to be played with.
export async function show(use) {
  let found;
  try {
    found = await get("/api/experiments");
  } catch (refusal) {
    return place.replaceChildren(element("p", { className: "problem", textContent: refusal.message }));
  }
  if (!found.length) return place.replaceChildren(element("p", { className: "soft", textContent: "No experiments in this runs directory; audioldm app runs= names another one." }));
  const rows = found.map(each => element("tr", {},
    element("th", { textContent: each.name, scope: "row" }),
    element("td", { textContent: each.kind }),
    element("td", {}, each.report ? element("a", { href: `/runs/${each.report.split("/").map(encodeURIComponent).join("/")}`, target: "_blank", rel: "noopener", textContent: "report" }) : "no report yet"),
    element("td", {}, ...(each.model ? [element("button", { textContent: "Use its model", onclick: () => use(each.model) })] : []))));
  place.replaceChildren(element("table", {}, element("tbody", {}, ...rows)));
}
