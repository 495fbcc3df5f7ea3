// One question and its response: creates their elements and updates them as tokens arrive.

import { element } from "./dom.js";
import { asCurl, asPython } from "./snippets.js";

const INCOMPLETE = ["incomplete", "The response was interrupted and is not part of the conversation"];

export class Turn {
  #text = document.createTextNode("");
  #body = element("p", { className: "response-text" }, this.#text);
  #facts = element("p", { className: "facts" });
  #actions = element("div", { className: "actions" });
  #response = element("div", { className: "response" }, this.#body);
  #failure = null;
  #startedAt = 0;
  #firstAt = 0;
  #lastAt = 0;
  #numPieces = 0;
  #usage = null;

  /** @param {{question: string, images: import("./images.js").ImageFile[], onEnlarge: Function}} options */
  constructor({ question, images, onEnlarge }) {
    this.question = question;
    this.images = images;
    const buttons = images.map((image) => {
      const alt = `${image.name}, ${image.width} × ${image.height}`;
      const button = element("button", { type: "button", className: "image", title: alt });
      button.append(element("img", { src: image.preview, alt }));
      button.addEventListener("click", () => onEnlarge(image));
      return button;
    });
    const questionElement = element("div", { className: "question" });
    if (buttons.length) questionElement.append(element("div", { className: "images" }, ...buttons));
    questionElement.append(element("p", { className: "question-text", textContent: question }));
    this.element = element("li", { className: "turn" }, questionElement, this.#response);
  }

  get response() {
    return this.#text.data;
  }

  /** Whether the turn is part of the conversation that is sent to the model. Failed turns are excluded. */
  get isComplete() {
    return this.#failure === null && this.response !== "";
  }

  /** Returns the messages of this turn: the question, and the response if there is one. */
  messages() {
    const text = { type: "text", text: this.question };
    const parts = this.images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    const user = { role: "user", content: parts.length ? [...parts, text] : this.question };
    return this.response ? [user, { role: "assistant", content: this.response }] : [user];
  }

  begin() {
    this.#failure?.remove();
    this.#failure = null;
    this.#usage = null;
    this.#numPieces = this.#firstAt = 0;
    this.#text.data = "";
    this.#response.replaceChildren(this.#body);
    this.#response.setAttribute("aria-busy", "true");
    this.#startedAt = performance.now();
  }

  /** Appends a chunk of the stream. */
  append(chunk) {
    if (chunk.usage) this.#usage = chunk.usage;
    const piece = chunk.choices?.[0]?.delta?.content;
    if (!piece) return;
    this.#lastAt = performance.now();
    this.#firstAt ||= this.#lastAt;
    this.#numPieces += 1;
    this.#text.appendData(piece);
    this.#showFacts();
  }

  /** @param {[string, string]=} remark  why the response is incomplete: a label and a tooltip */
  end(request, remark) {
    this.#response.removeAttribute("aria-busy");
    if (this.response === "" && !remark) this.#body.append(element("em", { textContent: "(empty response)" }));
    this.#showFacts(remark);
    this.#offerCopies(request);
  }

  fail(request, message, onRetry) {
    this.end(request, INCOMPLETE);
    const retry = element("button", { type: "button", className: "quiet", textContent: "Try again" });
    retry.addEventListener("click", onRetry);
    this.#failure = element("div", { className: "failure", role: "alert" }, element("p", { textContent: message }), retry);
    this.#facts.hidden = this.response === "";
    this.#response.insertBefore(this.#failure, this.#actions);
  }

  #showFacts(remark) {
    const facts = [remark, ...this.#timing(), ...this.#counts()].filter(Boolean);
    const spans = facts.map(([text, title]) => element("span", { textContent: text, title }));
    this.#facts.replaceChildren(...spans);
    this.#facts.hidden = false;
    if (!this.#facts.isConnected) this.#response.append(this.#facts);
  }

  #timing() {
    if (!this.#firstAt) return [];
    const facts = [[`first token ${duration(this.#firstAt - this.#startedAt)}`, "Time to first token, measured by this page"]];
    const numTokens = this.#usage?.completion_tokens ?? this.#numPieces;
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    if (numTokens > 1 && seconds > 0.02) {
      const rate = (numTokens - 1) / seconds;
      const shown = rate < 10 ? rate.toFixed(1) : String(Math.round(rate));
      facts.push([`${this.#usage ? "" : "≈ "}${shown} tokens/s`, "Tokens per second after the first token"]);
    }
    return facts;
  }

  #counts() {
    if (!this.#usage) return this.#numPieces ? [[`≈ ${this.#numPieces} tokens`, "Counted by this page"]] : [];
    const { prompt_tokens: input, completion_tokens: output } = this.#usage;
    return [[`${input} tokens in · ${output} out`, "Prompt tokens, including images, and generated tokens"]];
  }

  #offerCopies(request) {
    const copies = [
      ["Copy response", () => this.response],
      ["Copy as curl", () => asCurl(request, location.origin)],
      ["Copy as Python", () => asPython(request, location.origin)],
    ];
    this.#actions.replaceChildren(
      ...copies.slice(this.response ? 0 : 1).map(([label, text]) => {
        const button = element("button", { type: "button", className: "quiet small", textContent: label });
        button.addEventListener("click", () => copy(button, label, text()));
        return button;
      }),
    );
    this.#response.append(this.#actions);
  }
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

async function copy(button, label, text) {
  const copied = await toClipboard(text);
  button.textContent = copied ? "Copied" : "Copying failed";
  setTimeout(() => {
    button.textContent = label;
  }, 1500);
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
