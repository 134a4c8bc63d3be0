// Gradio's widgets have elements without a name that can be read out, or with one that is not what is seen.
const mended = {
  // An empty video: a name is for what has a role.
  ".empty[aria-label]:not([role])": (element) => element.setAttribute("role", "img"),
  // Without a label its name is its text.
  ".upload-container[aria-label]:not(.icon-mode)": (element) => element.removeAttribute("aria-label"),
  // A key of Gradio's translations, without a translation.
  "[aria-label='common.upload']": (element) => {
    element.setAttribute("aria-label", "Add pictures");
    element.title = "Add pictures";
  },
  // A button within a button: the outer one, which has a name, does what the inner one did.
  ".icon-button .upload-container:not([inert])": (inner) => {
    inner.inert = true;
    inner.closest(".icon-button").addEventListener("click", (event) => {
      if (!inner.contains(event.target)) inner.querySelector("input").click();
    });
  },
  // A link around a button is one place to stop at, not two.
  ".download-link button:not([tabindex])": (button) => button.setAttribute("tabindex", "-1"),
  "video:not([aria-label])": (video) => video.setAttribute("aria-label", "The video"),
  "[aria-label='play-pause-replay-button']": (button) => button.setAttribute("aria-label", "Play or pause"),
  "[aria-label='full-screen']": (button) => button.setAttribute("aria-label", "Full screen"),
  // Whether an accordion is open is said by the direction of an arrow alone.
  "button.label-wrap": (button) => button.setAttribute("aria-expanded", button.classList.contains("open")),
  ".label-wrap .icon:not([aria-hidden])": (arrow) => arrow.setAttribute("aria-hidden", "true"),
};
function mend() {
  for (const [selector, change] of Object.entries(mended)) document.querySelectorAll(selector).forEach(change);
}
new MutationObserver(mend).observe(document, {
  childList: true, subtree: true, attributeFilter: ["aria-label", "class"],
});

// The videos of this visit, the last one first; a click shows one large again. The server keeps them for an hour.
const KEPT = 8;
function keep() {
  const strip = document.querySelector("#strip h2 + div");
  const url = document.querySelector("#video video")?.currentSrc;
  if (!strip || !url || [...strip.querySelectorAll("video")].some((video) => video.src === url)) return;
  const seed = /seed_(\d+)_at/.exec(url)?.[1];
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `Show the video of seed ${seed}`);
  const video = Object.assign(document.createElement("video"), {src: url, muted: true, loop: true, autoplay: true});
  video.playsInline = true;
  video.setAttribute("aria-hidden", "true");
  video.tabIndex = -1;
  button.append(video, `seed ${seed}`);
  button.addEventListener("click", () => {
    const large = document.querySelector("#video video");
    large.src = url;
    large.play();
  });
  strip.prepend(button);
  while (strip.children.length > KEPT) strip.lastChild.remove();
  document.querySelector("#strip h2").hidden = false;
}
document.addEventListener("loadeddata", keep, true);
