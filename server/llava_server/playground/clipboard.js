// Buttons that copy text to the clipboard.

import { button, element } from "./dom.js";

const SHOWN_MS = 1500;

/** Creates a button that copies the text that text() returns. */
export function copyButton(label, text) {
  const node = button(label, async () => {
    node.textContent = (await toClipboard(text())) ? "Copied" : "Copying failed";
    setTimeout(() => {
      node.textContent = label;
    }, SHOWN_MS);
  });
  return node;
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // The clipboard API requires https or localhost. Otherwise, select the text in a field and use execCommand.
    const field = element("textarea", { value: text, className: "sr-only" });
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}
