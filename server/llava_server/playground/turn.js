// One question and its responses: one, or one per model in a comparison.

import { button, element } from "./dom.js";
import { FORMATS } from "./output_format.js";
import { ResponseView } from "./response.js";

/**
 * @typedef {object} Turn
 * @property {string} question
 * @property {import("./images.js").ImageFile[]} images
 * @property {import("./output_format.js").Format} format
 * @property {import("./response.js").Response[]} responses
 */

export class TurnView {
  #question = element("div", { className: "question" });
  #responses = element("div", { className: "responses" });
  #editButton;
  #actions;

  /**
   * @param {Turn} data
   * @param {object} actions  enlarge(image), canRegenerate(), regenerate(turn), request(turn, column),
   *     retry(turn, column) and, in demo mode, killWorker(responseId)
   */
  constructor(data, actions) {
    this.data = data;
    this.#actions = actions;
    this.element = element("li", { className: "turn" }, this.#question, this.#responses);
    this.#showQuestion();
    this.showResponses();
  }

  /** Creates the elements of the responses, after their number or their models have changed. */
  showResponses() {
    this.views = this.data.responses.map((response, column) => {
      const { request, retry, killWorker } = this.#actions;
      const actions = { request: () => request(this, column), retry: () => retry(this, column), killWorker };
      return new ResponseView(response, this.data.format, actions);
    });
    this.#responses.classList.toggle("is-comparison", this.views.length > 1);
    this.#responses.replaceChildren(...this.views.map((view) => view.element));
  }

  #showQuestion() {
    const { question, images, format } = this.data;
    const children = images.length
      ? [element("div", { className: "images" }, ...images.map((image) => this.#thumbnail(image)))]
      : [];
    children.push(element("p", { className: "question-text", textContent: question }));
    if (format.kind !== "text")
      children.push(element("p", { className: "question-format", textContent: FORMATS[format.kind].label }));
    this.#editButton = button("Edit", () => this.#edit());
    const regenerate = button("Regenerate", () => this.#regenerate(), { className: "quiet small regenerate" });
    this.#question.replaceChildren(...children, element("div", { className: "question-actions" }, this.#editButton, regenerate));
  }

  #regenerate() {
    if (this.#actions.canRegenerate()) this.#actions.regenerate(this);
  }

  #thumbnail(image) {
    const alt = `${image.name}, ${image.width} × ${image.height}`;
    const node = button("", () => this.#actions.enlarge(image), { className: "image", title: alt });
    node.append(element("img", { src: image.url, alt }));
    return node;
  }

  #cancelEdit() {
    this.#showQuestion();
    this.#editButton.focus();
  }

  #edit() {
    const field = element("textarea", { value: this.data.question, rows: 3, ariaLabel: "Edit the question" });
    const cancel = button("Cancel", () => this.#cancelEdit());
    const form = element(
      "form",
      { className: "edit" },
      field,
      element("p", { className: "hint", textContent: "Later messages of this chat are removed." }),
    );
    form.append(
      element(
        "div",
        { className: "question-actions" },
        cancel,
        element("button", { className: "primary small", textContent: "Save and send" }),
      ),
    );
    const send = () => {
      const question = field.value.trim();
      if (question === "" || !this.#actions.canRegenerate()) return;
      this.data.question = question;
      this.#showQuestion();
      this.#regenerate();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.#cancelEdit();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === field) {
        event.preventDefault();
        send();
      }
    });
    this.#question.replaceChildren(form);
    field.focus();
  }
}
