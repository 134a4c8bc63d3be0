// Videos play while they are in view, unless the reader wants no motion.
const pause = document.getElementById("pause");
const videos = [...document.querySelectorAll("video")];
const inView = new Set();
let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
function update() {
  pause.setAttribute("aria-pressed", paused);
  for (const video of videos) {
    if (!paused && inView.has(video)) video.play();
    else video.pause();
  }
}
pause.addEventListener("click", () => {
  paused = !paused;
  update();
});
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) inView[entry.isIntersecting ? "add" : "delete"](entry.target);
  update();
});
videos.forEach((video) => observer.observe(video));
update();
