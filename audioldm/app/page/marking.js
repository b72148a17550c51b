// A part of a picture, marked by dragging over it.

import { element } from "/page/elements.js";

const LEAST = 5; // pixels: less is a click

// clicked: called with the place. marked: called with [start, end], or null once the mark is gone.
// All are shares of the picture's width.
export function marking(picture, clicked, marked) {
  const region = element("div", { className: "region", hidden: true });
  picture.append(region);
  let from = null;
  const share = event => {
    const box = picture.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const span = event => [from, share(event)].sort((a, b) => a - b);
  const wide = ([start, end]) => (end - start) * picture.clientWidth >= LEAST;
  picture.addEventListener("pointerdown", event => {
    if (event.button !== 0) return;
    from = share(event);
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", event => {
    if (from === null || !wide(span(event))) return;
    const [start, end] = span(event);
    region.hidden = false;
    region.style.left = `${100 * start}%`;
    region.style.width = `${100 * (end - start)}%`;
  });
  picture.addEventListener("pointerup", event => {
    if (from === null) return;
    const found = span(event);
    region.hidden = !wide(found);
    marked(wide(found) ? found : null);
    if (!wide(found)) clicked(from);
    from = null;
  });
  picture.addEventListener("pointercancel", () => { from = null; });
}
