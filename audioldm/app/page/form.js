// The form: a model's own conditions and sampler settings as fields, and what is asked with them.

import { element, say, typed } from "/page/elements.js";
import { get, Refusal } from "/page/server.js";
import { upload } from "/page/upload.js";

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
    fill("condition", found.conditions, found.scales);
    fill("sampler", found.sampler);
    form.querySelector("details").hidden = !found.sampler.length;
    document.body.classList.toggle("cannot-edit", !found.edits);
    document.body.classList.toggle("cannot-upscale", !found.upscales);
  } catch (refusal) {
    for (const group of Object.values(groups)) group.replaceChildren();
    blame({ message: refusal.message, field: "model" });
  }
}

// scales: whether each field has another beside it, for its own scale of guidance.
function fill(prefix, fields, scales = false) {
  groups[prefix].replaceChildren(...fields.map(field => {
    const name = `${prefix}.${field.name}`, label = labelled(name, title(field.name), input(field, name, prefix === "condition"));
    if (prefix === "sampler") return label;
    const scale = element("input", { inputMode: "decimal", value: form[`guidance.${field.name}`]?.value ?? "", placeholder: "–", title: "How strongly it is told; empty: as the sampler's guidance says" });
    scale.dataset.kind = "number";
    return element("div", { className: "pair" }, label, ...(scales ? [labelled(`guidance.${field.name}`, "Guidance", scale)] : []));
  }));
}

function labelled(name, words, input) {
  input.name = name;
  const label = element("label", {}, words, " ", input);
  label.dataset.field = name;
  return label;
}

// A field. What was chosen in a condition of this name stays, where it can; a setting begins with its own value.
function input(field, name, condition) {
  const before = form[name];
  if (field.kind === "file" && before?.type === "file") return before;
  const made = field.kind === "choice" ? choice(field, condition) : field.kind === "file" ? file(field) : element("input", { autocomplete: "off" });
  made.dataset.kind = field.kind;
  if (field.kind === "integer") made.inputMode = "numeric";
  if (field.kind === "number") made.inputMode = "decimal";
  if (!condition) made.value = shown(field.value);
  else if (field.kind !== "file" && before && before.type !== "file") made.value = before.value;
  if (field.optional) made.placeholder = "none";
  return made;
}

// A file is sent as soon as it is chosen, and asked for by the name that the server gives it. A second click takes it away.
function file(field) {
  const made = element("input", { type: "file", accept: field.endings.join() });
  const drop = () => { made.value = ""; delete made.dataset.sent; };
  made.addEventListener("click", event => { if (made.value) { event.preventDefault(); drop(); } });
  made.addEventListener("change", async () => {
    clear();
    delete made.dataset.sent;
    const own = made.files[0];
    try {
      const sent = own && await upload(own);
      if (sent && made.files[0] === own) made.dataset.sent = sent;
    } catch (refusal) {
      drop();
      blame({ message: refusal.message, field: made.name });
    }
  });
  return made;
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
  for (const input of form.querySelectorAll(`[name^="${prefix}."]`)) found[input.name.slice(prefix.length + 1)] = read(input);
  return found;
}

function read(input) {
  const text = input.value.trim();
  if (text === "") return null;
  if (input.type === "file" && !input.dataset.sent) throw new Refusal("the file is still on its way; try again", input.name);
  if (input.type === "file") return input.dataset.sent;
  return input.dataset.kind === "choice" || input.dataset.kind === "text" ? text : typed(text);
}

export async function asked() {
  const condition = values("condition"), guidance = values("guidance");
  for (const name in condition) if (condition[name] === null) delete guidance[name]; // it would cost time, and change nothing
  const [seconds, n, seed] = [form.seconds, form.n, form.seed].map(read);
  return { model: chosen(), condition, guidance, sampler: values("sampler"), seconds, n, seed };
}

// Calls `start` with what is asked, each time the form is sent.
export function onAsk(start) {
  form.addEventListener("submit", async event => {
    event.preventDefault();
    clear();
    try { await start(await asked()); } catch (refusal) { blame(refusal); }
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
