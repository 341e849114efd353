// What is pressed in the studio's own parts goes to one hidden button of Gradio's.
(() => {
  window.studioAsked = ["", ""];
  document.addEventListener("click", (event) => {
    const pressed = event.target.closest("[data-do]");
    if (!pressed || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    window.studioAsked = [pressed.dataset.do, pressed.dataset.what];
    const button = document.querySelector("button#studio-ask, #studio-ask button");
    if (button) button.click();
  });
  document.addEventListener("error", (event) => {
    const image = event.target;
    if (!(image instanceof HTMLImageElement) || !image.dataset.none) return;
    const words = document.createElement("span");
    words.className = "st-thumb st-none";
    words.textContent = image.dataset.none;
    image.replaceWith(words);
  }, true);
})();
