// One response: its data, and its elements, which are updated as tokens arrive.

import { copyButton } from "./clipboard.js";
import { button, element } from "./dom.js";
import { MAX_NESTING, isNestedTooDeeply, violations } from "./json_schema.js";
import { codeBlock, renderMarkdown } from "./markdown.js";
import { measureChunk, measureHeaders, measurementsTable, noMeasurements, summary } from "./measurements.js";
import { isJson, parseSchema } from "./output_format.js";
import { showTokens, tokensOf } from "./probabilities.js";
import { asCurl, asPython } from "./snippets.js";

/**
 * @typedef {object} Parameters
 * @property {number} temperature
 * @property {?number} maxTokens
 * @property {string} system  system message; may be empty
 *
 * @typedef {object} Response
 * @property {string} model
 * @property {Parameters} parameters
 * @property {boolean} wantsTokens  whether token probabilities are requested
 * @property {string} text
 * @property {"running" | "complete" | "stopped" | "truncated" | "failed"} status
 * @property {string} error  message for the user, if the response failed
 * @property {import("./measurements.js").Measurements} measurements
 * @property {import("./probabilities.js").Token[]} tokens  empty unless they were requested
 */

/** @returns {Response} */
export function newResponse(model, parameters, wantsTokens) {
  return {
    model,
    parameters,
    wantsTokens,
    text: "",
    status: "running",
    error: "",
    measurements: noMeasurements(),
    tokens: [],
  };
}

export class ResponseView {
  #body = element("div", { className: "response-text" });
  #validation = element("p", { className: "validation", hidden: true });
  #facts = element("p", { className: "facts", hidden: true });
  #rest = element("div", { className: "response-rest" }); // what is shown after the end
  #format;
  #actions;
  #startedAt = 0;
  #frame = 0;
  #showsTokens = false;

  /**
   * @param {Response} data
   * @param {import("./output_format.js").Format} format
   * @param {{request: Function, retry: Function, killWorker: ?Function}} actions  see TurnView
   */
  constructor(data, format, actions) {
    this.data = data;
    this.#format = format;
    this.#actions = actions;
    const model = element("p", { className: "response-model", textContent: data.model });
    this.element = element(
      "div",
      { className: "response" },
      model,
      this.#body,
      this.#validation,
      this.#facts,
      this.#rest,
    );
    if (data.status !== "running") this.#finish();
  }

  /** Shows that the response is being generated. */
  begin() {
    Object.assign(this.data, newResponse(this.data.model, this.data.parameters, this.data.wantsTokens));
    this.#startedAt = performance.now();
    this.#showsTokens = false;
    this.element.setAttribute("aria-busy", "true");
    this.#validation.hidden = this.#facts.hidden = true;
    this.#rest.replaceChildren();
    this.#renderText();
  }

  receiveHeaders(headers) {
    measureHeaders(this.data.measurements, headers);
  }

  append(chunk) {
    measureChunk(this.data.measurements, chunk, performance.now() - this.#startedAt);
    const offersKill = this.#actions.killWorker && !this.#rest.hasChildNodes();
    if (offersKill)
      this.#rest.append(button("Kill this worker", () => this.#killWorker(), { className: "danger small" }));
    this.data.tokens.push(...tokensOf(chunk));
    this.data.text += chunk.choices?.[0]?.delta?.content ?? "";
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#renderText();
      this.#renderFacts();
    });
  }

  /** Shows how long the response has been waiting, until the first token arrives. */
  showWaiting(message) {
    if (this.data.status !== "running" || this.data.text !== "") return;
    this.#facts.replaceChildren(element("span", { textContent: message }));
    this.#facts.hidden = false;
  }

  /** @param {Response["status"]} status */
  end(status, error = "") {
    this.data.status = status;
    this.data.error = error;
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.element.removeAttribute("aria-busy");
    this.#finish();
  }

  #finish() {
    const { data } = this;
    this.#renderText();
    this.#renderFacts();
    this.#rest.replaceChildren();
    if (data.status === "failed") this.#rest.append(this.#failure());
    if (data.measurements.id) this.#rest.append(measurementsTable(data.measurements, data.model));
    this.#rest.append(element("div", { className: "actions" }, ...this.#buttons()));
    this.#validate();
  }

  #failure() {
    const retry = button("Try again", () => this.#actions.retry(), { className: "quiet" });
    const failure = element("div", { className: "failure" }, element("p", { textContent: this.data.error }), retry);
    failure.setAttribute("role", "alert");
    return failure;
  }

  #buttons() {
    const copies = [
      copyButton("Copy as curl", () => asCurl(this.#actions.request(), location.origin)),
      copyButton("Copy as Python", () => asPython(this.#actions.request(), location.origin)),
    ];
    if (this.data.text) copies.unshift(copyButton("Copy response", () => this.data.text));
    if (this.data.tokens.length) {
      const toggle = button("Token probabilities", () => {
        this.#showsTokens = !this.#showsTokens;
        toggle.setAttribute("aria-pressed", String(this.#showsTokens));
        this.#renderText();
      });
      toggle.setAttribute("aria-pressed", "false");
      copies.push(toggle);
    }
    return copies;
  }

  #renderText() {
    const { text, tokens, status } = this.data;
    const isEmpty = text === "" && status !== "running";
    if (this.#showsTokens) showTokens(this.#body, tokens);
    else if (isEmpty && status === "complete")
      this.#body.replaceChildren(element("em", { textContent: "(empty response)" }));
    else if (text !== "" && isJson(this.#format)) this.#body.replaceChildren(codeBlock(indented(text), "json"));
    else renderMarkdown(this.#body, text);
  }

  #renderFacts() {
    const facts = summary(this.data.measurements, this.data.status);
    this.#facts.replaceChildren(...facts);
    this.#facts.hidden = facts.length === 0 || (this.data.status === "failed" && this.data.text === "");
  }

  /** Shows whether a JSON response is valid. */
  #validate() {
    this.#validation.hidden = !isJson(this.#format) || this.data.text === "";
    if (this.#validation.hidden) return;
    const errors = this.#errorsOf(parsed(this.data.text));
    const success = this.#format.kind === "schema" ? "Valid: conforms to the schema" : "Valid JSON";
    this.#validation.classList.toggle("is-invalid", errors.length > 0);
    this.#validation.textContent = errors.length ? errors.join(" ") : success;
  }

  #errorsOf(value) {
    if (value === undefined) return ["The response is not complete JSON."];
    if (isNestedTooDeeply(value)) return [`The response has more than ${MAX_NESTING} levels, so it is not checked.`];
    return violations(value, parseSchema(this.#format.schema).schema ?? {});
  }

  async #killWorker() {
    if (await this.#actions.killWorker(this.data.measurements.id)) this.data.measurements.numKills += 1;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // incomplete
  }
}

function indented(text) {
  const value = parsed(text);
  return value === undefined || isNestedTooDeeply(value) ? text : JSON.stringify(value, null, 2);
}
