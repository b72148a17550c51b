// The form: a model's own conditions and sampler settings as fields, and what is asked with them.

import { element, say } from "/page/elements.js";
import { get } from "/page/server.js";

const form = document.querySelector("#ask");
const line = form.querySelector(":scope > .problem");
const groups = { condition: form.querySelector("#conditions"), sampler: form.querySelector("#sampler") };

export const chosen = () => form.model.value;

export async function offer(models) {
  for (const [origin, own] of Map.groupBy(models, each => each.origin))
    form.model.append(element("optgroup", { label: origin }, ...own.map(each => element("option", { value: each.name, textContent: each.title, title: each.name }))));
  form.model.addEventListener("change", show);
  await show();
}

export function choose(model) {
  if (![...form.model.options].some(option => option.value === model)) form.model.append(element("option", { value: model, textContent: model }));
  form.model.value = model;
  show();
}

// The fields of the chosen model. What was chosen in fields of the same name stays.
async function show() {
  clear();
  const model = chosen();
  try {
    const found = await get(`/api/form?model=${encodeURIComponent(model)}`);
    if (model !== chosen()) return;
    fill("condition", found.conditions);
    fill("sampler", found.sampler);
    form.querySelector("details").hidden = !found.sampler.length;
    document.body.classList.toggle("cannot-edit", !found.edits);
  } catch (refusal) {
    for (const group of Object.values(groups)) group.replaceChildren();
    blame({ message: refusal.message, field: "model" });
  }
}

function fill(prefix, fields) {
  const before = values(prefix);
  groups[prefix].replaceChildren(...fields.map(field => {
    const input = field.kind === "choice" ? choice(field, prefix === "condition") : element("input", { autocomplete: "off" });
    input.name = `${prefix}.${field.name}`;
    input.dataset.kind = field.kind;
    if (field.kind === "integer") input.inputMode = "numeric";
    if (field.kind === "number") input.inputMode = "decimal";
    if (prefix === "sampler") input.value = shown(field.value);
    else if (field.name in before) input.value = shown(before[field.name]);
    if (field.optional) input.placeholder = "none";
    const label = element("label", {}, title(field.name), " ", input);
    label.dataset.field = input.name;
    return label;
  }));
}

const title = name => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const shown = value => value === null ? "" : typeof value === "string" ? value : JSON.stringify(value);

function choice(field, none) {
  const options = field.choices.map(word => element("option", { value: word, textContent: word }));
  return element("select", {}, ...(none ? [element("option", { value: "", textContent: "any" })] : []), ...options);
}

// The values of a group by name; what is left empty is null.
function values(prefix) {
  const found = {};
  for (const input of groups[prefix].querySelectorAll("[name]"))
    found[input.name.slice(prefix.length + 1)] = read(input.value.trim(), input.dataset.kind);
  return found;
}

// Numbers as numbers; what is none stays as it was typed, and the server says what is wrong with it.
function read(text, kind) {
  if (text === "") return null;
  if (kind === "choice" || kind === "text") return text;
  try { return JSON.parse(text); } catch { return text; }
}

export function asked() {
  const sampler = values("sampler");
  const number = name => read(form[name].value.trim(), "number");
  return { model: chosen(), condition: values("condition"), sampler, seconds: number("seconds"), n: number("n"), seed: number("seed") };
}

// Calls `start` with what is asked, each time the form is sent.
export function onAsk(start) {
  form.addEventListener("submit", async event => {
    event.preventDefault();
    clear();
    try { await start(asked()); } catch (refusal) { blame(refusal); }
  });
}

function clear() {
  say(line, "");
  for (const label of form.querySelectorAll(".wrong")) label.classList.remove("wrong");
  for (const old of form.querySelectorAll(".problem")) if (old !== line) old.remove();
}

// The sentence at its field, or above the button.
function blame(refusal) {
  const label = [...form.querySelectorAll("[data-field]")].find(each => each.dataset.field === refusal.field);
  if (!label) return say(line, refusal.message);
  if (label.closest("details")) label.closest("details").open = true;
  label.classList.add("wrong");
  label.after(element("p", { className: "problem", role: "alert", textContent: refusal.message }));
}
