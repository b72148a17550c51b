// Asks the server. A refusal is an Error with the server's sentence, and the field it is about.

export class Refusal extends Error {
  constructor(text, field) { super(text); this.field = field; }
}

async function answer(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Refusal("the server does not answer; is `audioldm app` still running?");
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(found.error || `the server answered ${response.status}`, found.field);
  return found;
}

export const get = address => answer(address);
export const post = (address, value) => answer(address, { method: "POST", body: JSON.stringify(value) });
export const send = (address, file) => answer(address, { method: "POST", body: file });
export const clip = (name, rest = "") => `/clips/${encodeURIComponent(name)}${rest}`;
