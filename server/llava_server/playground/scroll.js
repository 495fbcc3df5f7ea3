// Keeps the newest words in view, but never pulls the page away from someone who scrolled up to read.

const NEAR_END_PX = 80;

let button;
let isFollowing = true;

const distance = () => document.documentElement.scrollHeight - innerHeight - scrollY;

/** @param {HTMLButtonElement} jump  shown while the end is out of view */
export function followEnd(jump) {
  button = jump;
  addEventListener(
    "scroll",
    () => {
      isFollowing = distance() < NEAR_END_PX;
      button.hidden = isFollowing;
    },
    { passive: true },
  );
  button.addEventListener("click", () => scrollToEnd({ force: true }));
}

/** Call it after the page grew. force: the reader just asked for the end. */
export function scrollToEnd({ force = false } = {}) {
  if (!force && !isFollowing) return;
  isFollowing = true;
  scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
}
