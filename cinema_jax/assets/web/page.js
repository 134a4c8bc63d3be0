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
