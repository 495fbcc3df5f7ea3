// Builds the body of a chat request from the turns of a conversation.

import { formatFields, questionText } from "./output_format.js";

const NUM_ALTERNATIVES = 5; // most likely tokens at each position

/** Whether a response is part of the conversation that is sent to the model. Failed responses are excluded. */
export function isComplete(response) {
  return (
    response !== undefined && response.text !== "" && response.status !== "failed" && response.status !== "running"
  );
}

/**
 * Returns the request for the response to the last of the turns. In a comparison, each model receives its own earlier
 * responses.
 * @param {import("./turn.js").Turn[]} turns
 * @param {number} column  index of the response in each turn
 * @returns {import("./snippets.js").Request}
 */
export function requestFor(turns, column, usesKey) {
  const turn = turns.at(-1);
  const { model, parameters, wantsTokens } = turn.responses[column];
  const { temperature, maxTokens, system } = parameters;
  const messages = system ? [{ role: "system", content: system }] : [];
  const included = [];
  for (const earlier of turns.slice(0, -1)) {
    const response = earlier.responses[column] ?? earlier.responses[0];
    if (!isComplete(response)) continue;
    included.push(earlier);
    messages.push(userMessage(earlier), { role: "assistant", content: response.text });
  }
  messages.push(userMessage(turn));
  const body = {
    model,
    messages,
    temperature,
    ...(maxTokens === null ? {} : { max_tokens: maxTokens }),
    ...formatFields(turn.format),
    ...(wantsTokens ? { logprobs: true, top_logprobs: NUM_ALTERNATIVES } : {}),
    stream: true,
    stream_options: { include_usage: true },
  };
  return { body, images: [...included, turn].flatMap(({ images }) => images), usesKey };
}

function userMessage({ question, images, format }) {
  const text = questionText(question, format);
  if (!images.length) return { role: "user", content: text };
  const parts = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: [...parts, { type: "text", text }] };
}
