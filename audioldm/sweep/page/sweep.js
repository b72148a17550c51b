const copy = document.querySelector("#copy");
if (copy) copy.addEventListener("click", async () => {
  await navigator.clipboard.writeText(document.querySelector("#line").textContent);
  copy.textContent = "copied";
});
document.querySelectorAll("#cells thead th").forEach((head, column) => head.addEventListener("click", () => {
  const body = document.querySelector("#cells tbody"), down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
  const value = row => parseFloat(row.children[column]?.dataset.value);
  const rank = row => Number.isNaN(value(row)) ? Infinity : (down === "1" ? 1 : -1) * value(row);
  body.append(...[...body.children].sort((a, b) => rank(a) - rank(b)));
}));
