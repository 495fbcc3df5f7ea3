// Shows an image in a dialog in which it can be enlarged and scrolled.

import { byId } from "./dom.js";

const STEP = 1.5;
const MAX_SCALE = 16; // screen pixels per image pixel
const MIN_SCALE = 0.05;

let scale = null; // null: the image fits the dialog

/** Connects the buttons and keys of the dialog. */
export function watchLightbox() {
  const view = byId("lightbox-view");
  byId("zoom-in").addEventListener("click", () => zoomBy(STEP));
  byId("zoom-out").addEventListener("click", () => zoomBy(1 / STEP));
  byId("zoom-fit").addEventListener("click", () => show(null));
  byId("lightbox-close").addEventListener("click", () => byId("lightbox").close());
  view.addEventListener("dblclick", () => show(scale === null ? 1 : null));
  view.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return; // scrolls; with Ctrl, or with two fingers on a trackpad, zooms
      event.preventDefault();
      zoomBy(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    },
    { passive: false },
  );
  byId("lightbox").addEventListener("keydown", (event) => {
    const action = {
      "+": () => zoomBy(STEP),
      "=": () => zoomBy(STEP),
      "-": () => zoomBy(1 / STEP),
      0: () => show(null),
    }[event.key];
    if (!action || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    action();
  });
}

/** Opens an image. @param {import("./images.js").ImageFile} image */
export function openLightbox(image) {
  const shown = byId("lightbox-image");
  shown.src = image.url;
  shown.alt = image.name;
  show(null);
  byId("lightbox").showModal();
}

function zoomBy(factor) {
  const shown = byId("lightbox-image");
  const current = scale ?? shown.getBoundingClientRect().width / shown.naturalWidth;
  show(Math.min(MAX_SCALE, Math.max(MIN_SCALE, current * factor)));
}

function show(newScale) {
  scale = newScale;
  const shown = byId("lightbox-image");
  shown.classList.toggle("is-zoomed", scale !== null);
  shown.style.width = scale === null ? "" : `${Math.round(shown.naturalWidth * scale)}px`;
  byId("zoom-state").textContent = scale === null ? "Fit" : `${Math.round(scale * 100)} %`;
}
