// Gradio's field takes files that are dropped or chosen; with this it also takes pasted ones.
document.addEventListener("paste", (event) => {
  const field = document.querySelector("#drop input[type=file]");
  if (!field || !event.clipboardData.files.length) return;
  const transfer = new DataTransfer();
  for (const file of event.clipboardData.files) transfer.items.add(file);
  field.files = transfer.files;
  field.dispatchEvent(new Event("change", {bubbles: true}));
});

// The rainy video follows the derained one, which may begin later.
function followFilm(event) {
  const [rainy, derained] = document.querySelectorAll("#film video");
  if (!derained || event.target !== derained) return;
  const due = derained.currentTime + +derained.dataset.begin;
  if (derained.paused || Math.abs(rainy.currentTime - due) > .05) rainy.currentTime = due;
  rainy.playbackRate = derained.playbackRate;
  if (derained.paused) rainy.pause(); else rainy.play();
}
for (const name of ["play", "pause", "seeked", "ratechange", "timeupdate", "loadeddata"]) {
  document.addEventListener(name, followFilm, true);
}
// A browser plays some formats only; the slider shows a frame of the others.
document.addEventListener("error", (event) => {
  if (event.target.closest?.("#film")) event.target.hidden = true;
}, true);
