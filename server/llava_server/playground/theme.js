// The color theme: light, dark, or that of the system. Runs before the first paint, and stores only a selected theme.

const NAME = "llava.theme";

function apply(theme) {
  document.documentElement.dataset.theme = theme;
}

apply(localStorage.getItem(NAME) ?? "system");

/** Connects the list of themes. */
export function watchTheme(picker) {
  picker.value = document.documentElement.dataset.theme;
  picker.addEventListener("change", () => {
    localStorage.setItem(NAME, picker.value);
    apply(picker.value);
  });
}
