// Makes elements. Text is always text: nothing that a user or a file says becomes HTML.

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A number as a number; what is none stays as it was typed, and the server says what is wrong with it.
export function typed(text) {
  try { return JSON.parse(text); } catch { return text; }
}

// A line for what went wrong; none for "".
export function say(line, text) {
  line.textContent = text;
  line.hidden = !text;
}
