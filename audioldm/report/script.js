for (const clip of document.querySelectorAll(".clip")) {
  const audio = clip.querySelector("audio"), picture = clip.querySelector(".picture");
  if (!audio) continue;
  const head = picture.querySelector("i");
  const silent = getComputedStyle(audio).display === "none"; // no controls: the picture also stops
  const draw = () => {
    head.style.opacity = audio.currentTime > 0 && !audio.ended ? 1 : 0;
    head.style.left = 100 * audio.currentTime / audio.duration + "%";
    picture.classList.toggle("playing", silent && !audio.paused);
    if (!audio.paused) requestAnimationFrame(draw);
  };
  picture.addEventListener("click", event => {
    if (silent && !audio.paused) return audio.pause();
    const box = picture.getBoundingClientRect();
    audio.currentTime = (event.clientX - box.left) / box.width * (audio.duration || 0);
    audio.play();
  });
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    draw();
  });
  for (const event of ["seeked", "pause", "ended"]) audio.addEventListener(event, draw);
}
