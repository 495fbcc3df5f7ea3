// The images of the next question, added by drag and drop, paste or file selection, and sorted by the user.

import { button, element } from "./dom.js";
import { readImage } from "./images.js";

const DRAGGED = "application/x-llava-image"; // the index of a dragged thumbnail

export class Tray {
  #list;
  #onChange;
  #onReject;
  #onMove;
  #images = [];

  /**
   * onChange() is called after each change. onReject(message) is called after files have been added. The message is
   * empty if there was no error. onMove(message) is called with the new position of an image.
   */
  constructor(list, { onChange, onReject, onMove }) {
    this.#list = list;
    this.#onChange = onChange;
    this.#onReject = onReject;
    this.#onMove = onMove;
  }

  get images() {
    return this.#images;
  }

  /** Returns the images and clears the tray. */
  take() {
    const images = this.#images;
    this.#images = [];
    this.#show();
    return images;
  }

  /** Reads the files sequentially to preserve their order. */
  async add(files, options) {
    const errors = [];
    for (const file of files) {
      try {
        this.#images.push(await readImage(file, options));
        this.#show();
      } catch (error) {
        errors.push(error.message);
      }
    }
    this.#onReject(errors.join(" "));
  }

  /** Adds an example image from the server. */
  async addFrom(url) {
    const blob = await (await fetch(url)).blob();
    await this.add([new File([blob], url.split("/").pop(), { type: blob.type })], { isFile: false });
  }

  /** Accepts images dropped or pasted anywhere in the window, and shows the curtain while a file is dragged over it. */
  listen({ input, curtain }) {
    input.addEventListener("change", async () => {
      await this.add([...input.files]);
      input.value = ""; // allows the same file to be selected again
    });
    addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length) return; // text is pasted into the focused field
      event.preventDefault();
      this.add(files, { isFile: false });
    });
    addEventListener("dragover", (event) => {
      event.preventDefault();
      curtain.hidden = ![...(event.dataTransfer?.types ?? [])].includes("Files");
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) curtain.hidden = true; // the pointer left the window, not just an element
    });
    addEventListener("drop", (event) => {
      event.preventDefault();
      curtain.hidden = true;
      const files = [...(event.dataTransfer?.files ?? [])];
      if (files.length) this.add(files);
      else if (!event.dataTransfer?.types.includes(DRAGGED)) {
        this.#onReject("This is not a file. Save the image and drop the file, or copy and paste the image.");
      }
    });
  }

  #show() {
    this.#list.replaceChildren(...this.#images.map((image, index) => this.#thumbnail(image, index)));
    this.#onChange();
  }

  #thumbnail(image, index) {
    const { name, url } = image;
    const item = element(
      "li",
      { draggable: true },
      element("img", { src: url, alt: name, title: name, draggable: false }),
    );
    item.append(button("×", () => this.#remove(image), { className: "remove", ariaLabel: `Remove ${name}` }));
    if (this.#images.length > 1) {
      const left = { className: "move", ariaLabel: `Move ${name} to the left`, disabled: index === 0 };
      const right = {
        className: "move",
        ariaLabel: `Move ${name} to the right`,
        disabled: index === this.#images.length - 1,
      };
      const buttons = [
        button("‹", () => this.#move(index, index - 1, 0), left),
        button("›", () => this.#move(index, index + 1, 1), right),
      ];
      item.append(element("div", { className: "moves" }, ...buttons));
    }
    item.addEventListener("dragstart", (event) => event.dataTransfer.setData(DRAGGED, String(index)));
    item.addEventListener("drop", (event) => {
      const from = event.dataTransfer.getData(DRAGGED);
      if (from !== "") this.#move(Number(from), index, 0);
    });
    return item;
  }

  /** Moves an image, and focuses the button with this number of the moved image, or the other one at an end. */
  #move(from, to, buttonIndex) {
    if (!this.#images[from] || !this.#images[to]) return;
    const [image] = this.#images.splice(from, 1);
    this.#images.splice(to, 0, image);
    this.#show();
    const buttons = this.#list.children[to].querySelectorAll(".move");
    (buttons[buttonIndex].disabled ? buttons[1 - buttonIndex] : buttons[buttonIndex]).focus();
    this.#onMove(`${image.name} is now image ${to + 1} of ${this.#images.length}.`);
  }

  #remove(image) {
    this.#images = this.#images.filter((other) => other !== image);
    this.#show();
  }
}
