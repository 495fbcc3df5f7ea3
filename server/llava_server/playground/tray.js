// The images of the next question, added by drag and drop, paste or file selection.

import { element } from "./dom.js";
import { releaseImage, readImage } from "./images.js";

export class Tray {
  #list;
  #onChange;
  #onReject;
  #images = [];

  /**
   * onChange() is called after each change. onReject(message) is called after files have been added. The message is
   * empty if there was no error.
   */
  constructor(list, { onChange, onReject }) {
    this.#list = list;
    this.#onChange = onChange;
    this.#onReject = onReject;
  }

  get images() {
    return this.#images;
  }

  /** Returns the images and clears the tray. The caller must release the images. */
  take() {
    const images = this.#images;
    this.#images = [];
    this.#show();
    return images;
  }

  clear() {
    this.take().forEach(releaseImage);
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
      else this.#onReject("This is not a file. Save the image and drop the file, or copy and paste the image.");
    });
  }

  #show() {
    this.#list.replaceChildren(
      ...this.#images.map((image) => {
        const remove = element("button", { type: "button", textContent: "×", ariaLabel: `Remove ${image.name}` });
        remove.addEventListener("click", () => this.#remove(image));
        const thumbnail = element("img", { src: image.preview, alt: image.name, title: image.name });
        return element("li", {}, thumbnail, remove);
      }),
    );
    this.#onChange();
  }

  #remove(image) {
    this.#images = this.#images.filter((other) => other !== image);
    releaseImage(image);
    this.#show();
  }
}
