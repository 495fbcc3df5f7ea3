// Client for the server's HTTP API: models and streamed chat completions. Every failure is thrown as an ApiError with a
// message that can be shown to the user.

import { readEvents } from "./sse.js";

export class ApiError extends Error {
  /** @param {number} status HTTP status, or 0 if there was no response */
  constructor(message, status = 0) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

/** Returns the names of the served models. */
export async function fetchModels(key) {
  const response = await call("/v1/models", { headers: headers(key) });
  const listing = await response.json();
  return listing.data.map((model) => model.id);
}

/** Returns the number of responses that the server is generating or that wait for a worker. */
export async function fetchLoad(key) {
  const response = await call("/load", { headers: headers(key) });
  return (await response.json()).server_load;
}

/** Kills the worker that generates a response. The server allows this only in demo mode. */
export async function killWorker(responseId, key) {
  await call("/demo/kill-worker", post({ response_id: responseId }, key));
}

/**
 * Yields the chunks of a streamed response. Returns only after the server has sent [DONE].
 * @param {(headers: Headers) => void} onHeaders  called once, with the headers of the response
 * @throws {ApiError} if the request fails or the stream contains an error event
 * @throws {DOMException} named AbortError, if aborted
 */
export async function* streamChat(body, key, signal, onHeaders) {
  const response = await call("/v1/chat/completions", { ...post(body, key), signal });
  onHeaders(response.headers);
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(sentence(chunk.error.message));
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection was lost during the response. Try again.");
  }
  throw new ApiError("The server closed the connection before the response was complete. Try again.");
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function post(body, key) {
  return {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
}

async function call(path, init) {
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(`Cannot reach the server at ${location.host}. Is it running?`);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    // The response is from a proxy, not from this server, so its body is not an OpenAI error.
  }
  const wait = Number(response.headers.get("Retry-After"));
  const text = sentence(message || `The request failed with status ${response.status}.`);
  const hint = wait > 0 ? ` Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.` : "";
  return new ApiError(text + hint, response.status);
}

/** Capitalizes the first word of a message and adds a final period if necessary. */
function sentence(message) {
  const text = String(message || "something went wrong").trim();
  const isWord = /^[a-z]+[ ,]/.test(text); // not a field name
  const start = isWord ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return /[.!?…]$/.test(start) ? start : `${start}.`;
}
