// Keeps the end of the conversation in view unless the user has scrolled up.

const NEAR_END_PX = 80;

let button;
let isFollowing = true;

const distance = () => document.documentElement.scrollHeight - innerHeight - scrollY;

/** Starts keeping the end in view. @param {HTMLButtonElement} jump  shown while the end is out of view */
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

/** Scrolls to the end after the page has grown. force: scroll even if the user has scrolled up. */
export function scrollToEnd({ force = false } = {}) {
  if (!force && !isFollowing) return;
  isFollowing = true;
  scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
}
