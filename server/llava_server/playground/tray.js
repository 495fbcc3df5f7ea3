// The pictures that go with the next question, and the three ways in: dropped, pasted, chosen.

import { element } from "./dom.js";
import { forget, readPicture } from "./images.js";

export class Tray {
  #list;
  #onChange;
  #onRefuse;
  #pictures = [];

  /** onChange() after each change; onRefuse(sentences) after files came; empty if all are pictures. */
  constructor(list, { onChange, onRefuse }) {
    this.#list = list;
    this.#onChange = onChange;
    this.#onRefuse = onRefuse;
  }

  get pictures() {
    return this.#pictures;
  }

  /** Hands the pictures over; the taker frees them. */
  take() {
    const taken = this.#pictures;
    this.#pictures = [];
    this.#show();
    return taken;
  }

  clear() {
    this.take().forEach(forget);
  }

  /** Reads files one after another, so that they keep their order. */
  async add(files, options) {
    const refused = [];
    for (const file of files) {
      try {
        this.#pictures.push(await readPicture(file, options));
        this.#show();
      } catch (error) {
        refused.push(error.message);
      }
    }
    this.#onRefuse(refused.join(" "));
  }

  /** Takes one of the server's own pictures. */
  async addFrom(url) {
    const blob = await (await fetch(url)).blob();
    await this.add([new File([blob], url.split("/").pop(), { type: blob.type })], { isFile: false });
  }

  /** Takes pictures from the whole window; the curtain shows while one is dragged over it. */
  listen({ input, curtain }) {
    input.addEventListener("change", async () => {
      await this.add([...input.files]);
      input.value = ""; // the same file can be chosen again
    });
    addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length) return; // text: the field takes it
      event.preventDefault();
      this.add(files, { isFile: false });
    });
    addEventListener("dragover", (event) => {
      event.preventDefault();
      curtain.hidden = ![...(event.dataTransfer?.types ?? [])].includes("Files");
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) curtain.hidden = true; // left the window, not just an element
    });
    addEventListener("drop", (event) => {
      event.preventDefault();
      curtain.hidden = true;
      const files = [...(event.dataTransfer?.files ?? [])];
      if (files.length) this.add(files);
      else this.#onRefuse("That was not a file. Save the picture first, or copy it and paste it here.");
    });
  }

  #show() {
    this.#list.replaceChildren(
      ...this.#pictures.map((picture) => {
        const remove = element("button", { type: "button", textContent: "×", ariaLabel: `Remove ${picture.name}` });
        remove.addEventListener("click", () => this.#remove(picture));
        const image = element("img", { src: picture.preview, alt: picture.name, title: picture.name });
        return element("li", {}, image, remove);
      }),
    );
    this.#onChange();
  }

  #remove(picture) {
    this.#pictures = this.#pictures.filter((one) => one !== picture);
    forget(picture);
    this.#show();
  }
}
