// The server's HTTP API: models, and one streamed chat completion. Every failure becomes an ApiError with a sentence.

import { readEvents } from "./sse.js";

export class ApiError extends Error {
  /** @param {number} status HTTP status, 0 where there was none */
  constructor(message, status = 0) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

/** The names of the served models. */
export async function fetchModels(key) {
  const response = await call("/v1/models", { headers: headers(key) });
  const listing = await response.json();
  return listing.data.map((model) => model.id);
}

/**
 * Yields the chunks of a streamed answer. Ends normally only if the server message the answer is complete.
 * @throws {ApiError} also for an error event in mid-stream; a DOMException named AbortError if aborted
 */
export async function* streamChat(body, key, signal) {
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(sentence(chunk.error.message));
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection broke in the middle of the answer. Try again.");
  }
  throw new ApiError("The answer broke off: the server closed the connection before it was complete.");
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function call(path, init) {
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(`The server at ${location.host} does not answer. Is it running?`);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    // No OpenAI-shaped body: a proxy spoke, not the server. The status is all there is to say.
  }
  const wait = Number(response.headers.get("Retry-After"));
  const text = sentence(message || `The server refused with status ${response.status}.`);
  const hint = wait > 0 ? ` Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.` : "";
  return new ApiError(text + hint, response.status);
}

/** The server's messages begin in lower case and end without a stop; people read sentences. */
function sentence(message) {
  const text = String(message || "something went wrong").trim();
  const isWord = /^[a-z]+[ ,]/.test(text); // not the name of a field
  const start = isWord ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return /[.!?…]$/.test(start) ? start : `${start}.`;
}
