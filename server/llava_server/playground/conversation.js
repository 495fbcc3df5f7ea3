// The conversation on the page: a list of turns. Only one turn is generated at a time, with one request per model.

import { ApiError, fetchLoad, killWorker, streamChat } from "./api.js";
import { requestFor } from "./request.js";
import { newResponse } from "./response.js";
import { scrollToEnd } from "./scroll.js";
import { TurnView } from "./turn.js";

const WAITING_MS = 1000; // interval at which the load is displayed while a response waits for its first token
const SAVE_MS = 2000; // interval at which a response is stored while it is generated
const CLOSED = "The page was closed before the response was complete.";
const ELSEWHERE = "Another tab is generating this response. It is shown here when it is complete.";
const STATUSES = { length: "truncated" }; // by finish reason; all others are complete

export class Conversation {
  #log;
  #options;
  #chat = null;
  #turns = [];
  #running = null; // AbortController of the turn that is being generated

  /**
   * @param {HTMLElement} log
   * @param {object} options
   * @param {() => string} options.apiKey
   * @param {() => object} options.choices  the selected models, parameters and wantsTokens
   * @param {() => boolean} options.hasModel  whether a model is selected; otherwise, this is shown to the user
   * @param {boolean} options.isDemo  whether workers can be killed
   * @param {(chat: import("./chat_store.js").Chat) => void} options.onSave  called when a chat must be stored
   * @param {(isRunning: boolean) => void} options.onRunning
   * @param {(message: string) => void} options.announce  for screen readers
   * @param {(message: string) => void} options.notify  shows an error
   * @param {() => void} options.onUnauthorized
   * @param {(image: import("./images.js").ImageFile) => void} options.onEnlarge
   */
  constructor(log, options) {
    this.#log = log;
    this.#options = options;
  }

  get isEmpty() {
    return this.#turns.length === 0;
  }

  get isRunning() {
    return this.#running !== null;
  }

  /** Whether a response is being generated or a question is being edited. */
  get isBusy() {
    return this.isRunning || this.#log.querySelector(".edit") !== null;
  }

  /**
   * Shows a chat. A response that is being generated is stopped.
   *
   * @param {import("./chat_store.js").Chat} chat
   * @param {boolean} isUpdate  whether it is shown already, and another tab has changed it
   */
  show(chat, { isUpdate }) {
    this.stop();
    this.#setRunning(null);
    this.#chat = chat;
    const error = isUpdate ? ELSEWHERE : CLOSED;
    for (const response of chat.turns.flatMap(({ responses }) => responses)) {
      if (response.status === "running") Object.assign(response, { status: "failed", error });
    }
    this.#turns = chat.turns.map((turn) => this.#view(turn));
    this.#log.replaceChildren(...this.#turns.map((turn) => turn.element));
    scrollToEnd({ force: !isUpdate });
  }

  stop() {
    this.#running?.abort();
  }

  /** Adds a question and generates its responses. */
  async ask(question, images, format) {
    const turn = this.#view({ question, images, format, responses: [] });
    this.#turns.push(turn);
    this.#log.append(turn.element);
    await this.#generate(turn);
  }

  #view(data) {
    return new TurnView(data, {
      enlarge: this.#options.onEnlarge,
      canRegenerate: () => !this.isRunning && this.#options.hasModel(),
      regenerate: (turn) => this.#regenerate(turn),
      request: (turn, column) => this.#request(turn, column),
      retry: (turn, column) => this.#respond(turn, [column]),
      killWorker: this.#options.isDemo ? (id) => this.#killWorker(id) : null,
    });
  }

  #request(turn, column) {
    const turns = this.#turns.slice(0, this.#turns.indexOf(turn) + 1).map(({ data }) => data);
    return requestFor(turns, column, this.#options.apiKey() !== "");
  }

  /** Generates the responses of a turn again, and removes all later turns. */
  async #regenerate(turn) {
    for (const later of this.#turns.splice(this.#turns.indexOf(turn) + 1)) later.element.remove();
    await this.#generate(turn);
  }

  async #generate(turn) {
    const { models, parameters, wantsTokens } = this.#options.choices();
    turn.data.responses = models.map((model) => newResponse(model, parameters, wantsTokens));
    turn.showResponses();
    await this.#respond(turn, [...turn.data.responses.keys()]);
  }

  /** Generates some responses of a turn. Always ends them and re-enables the form, even if they fail. */
  async #respond(turn, columns) {
    if (this.#running) return;
    const running = new AbortController();
    const chat = this.#chat;
    this.#setRunning(running);
    const tasks = columns.map((column) =>
      this.#stream(turn.views[column], this.#request(turn, column).body, running.signal),
    );
    chat.turns = this.#turns.map(({ data }) => data);
    this.#options.onSave(chat);
    scrollToEnd({ force: true });
    const saving = setInterval(() => this.#options.onSave(chat), SAVE_MS);
    await Promise.all(tasks);
    clearInterval(saving);
    this.#options.onSave(chat);
    if (this.#running !== running) return; // another chat is shown
    this.#setRunning(null);
    scrollToEnd();
    this.#options.announce(columns.map((column) => announcementOf(turn.views[column].data)).join(" "));
  }

  async #stream(view, body, signal) {
    view.begin();
    const waiting = setInterval(() => this.#showWaiting(view), WAITING_MS);
    let reason = "";
    try {
      for await (const chunk of streamChat(body, this.#options.apiKey(), signal, (headers) =>
        view.receiveHeaders(headers),
      )) {
        view.append(chunk);
        if (view.data.text !== "") clearInterval(waiting);
        reason = chunk.choices?.[0]?.finish_reason ?? reason;
        scrollToEnd();
      }
      view.end(STATUSES[reason] ?? "complete");
    } catch (error) {
      this.#end(view, error);
    } finally {
      clearInterval(waiting);
    }
  }

  #end(view, error) {
    if (error.name === "AbortError") return view.end("stopped");
    if (!(error instanceof ApiError)) console.error(error);
    view.end(
      "failed",
      error instanceof ApiError ? error.message : "This page encountered an internal error. See the browser console.",
    );
    if (error.status === 401) this.#options.onUnauthorized();
    return undefined;
  }

  async #showWaiting(view) {
    try {
      const load = await fetchLoad(this.#options.apiKey());
      const responses = load === 1 ? "response is" : "responses are";
      view.showWaiting(`waiting for the first token · ${load} ${responses} in progress on this server`);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // the request itself reports that the server is unavailable
    }
  }

  /** Kills the worker that generates a response. Returns whether it was killed. */
  async #killWorker(id) {
    try {
      await killWorker(id, this.#options.apiKey());
      this.#options.announce("The worker was killed. Another worker continues the response.");
      return true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#options.notify(error.message);
      return false;
    }
  }

  #setRunning(running) {
    this.#running = running;
    this.#log.classList.toggle("is-running", running !== null);
    this.#options.onRunning(running !== null);
  }
}

/** Returns the text that a screen reader reads at the end of a response. */
function announcementOf(response) {
  if (response.status === "stopped") return "Stopped.";
  return response.status === "failed" ? "" : `Response: ${response.text}`;
}
