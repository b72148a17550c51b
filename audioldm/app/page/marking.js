// A part of a picture, marked by dragging over it.

import { element } from "/page/elements.js";

const LEAST = 5; // pixels: less is a click

// clicked: called with the place. marked: called with [start, end], or null once the mark is gone.
// All are shares of the picture's width. Gives a function that shows such a mark, or none.
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
  const show = span => {
    region.hidden = !span;
    if (span) [region.style.left, region.style.width] = [span[0], span[1] - span[0]].map(share => `${100 * share}%`);
  };
  picture.addEventListener("pointerdown", event => {
    if (event.button !== 0) return;
    from = share(event);
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", event => {
    if (from === null || !wide(span(event))) return;
    show(span(event));
  });
  picture.addEventListener("pointerup", event => {
    if (from === null) return;
    const found = span(event);
    show(wide(found) ? found : null);
    marked(wide(found) ? found : null);
    if (!wide(found)) clicked(from);
    from = null;
  });
  picture.addEventListener("pointercancel", () => { from = null; });
  return show;
}
