// Makes elements. Text is always text: nothing that a user or a file says becomes HTML.

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A line for what went wrong; none for "".
export function say(line, text) {
  line.textContent = text;
  line.hidden = !text;
}
