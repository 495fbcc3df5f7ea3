// The measurements of one response: queue, prefix cache and speed, as a short line and as a table.

import { element } from "./dom.js";

const DETAILS_OPEN = "llava.details";
const REMARKS = {
  stopped: ["stopped", "You stopped this response"],
  truncated: ["truncated", "The response reached the length limit set in the settings or by the model"],
  failed: ["incomplete", "The response was interrupted and is not part of the conversation"],
};

/**
 * @typedef {object} Measurements
 * @property {?number} queuePosition  number of requests ahead when the request arrived
 * @property {?number} queueEstimate  estimated queueing time in seconds
 * @property {?number} firstTokenMs   time to first token, measured by this page
 * @property {?number} outputMs       time from the first to the last token
 * @property {number} numPieces       number of chunks with text
 * @property {?number} numPrompt      prompt tokens, as reported by the server, like the other two
 * @property {?number} numCached      prompt tokens that were reused from the prefix cache
 * @property {?number} numOutput      output tokens
 * @property {string} id              ID of the response
 * @property {string} fingerprint     fingerprint of the model
 * @property {number} numKills        number of workers killed during the response
 */

/** @returns {Measurements} */
export function noMeasurements() {
  const unknown = { queuePosition: null, queueEstimate: null, firstTokenMs: null, outputMs: null };
  return {
    ...unknown,
    numPieces: 0,
    numPrompt: null,
    numCached: null,
    numOutput: null,
    id: "",
    fingerprint: "",
    numKills: 0,
  };
}

/** Adds what the headers of a response contain. */
export function measureHeaders(measurements, headers) {
  const number = (name) => (headers.has(name) ? Number(headers.get(name)) : null);
  measurements.queuePosition = number("x-queue-position");
  measurements.queueEstimate = number("x-queue-estimate-s");
}

/** Adds what a chunk contains. @param {number} elapsedMs  since the request was sent */
export function measureChunk(measurements, chunk, elapsedMs) {
  measurements.id = chunk.id ?? measurements.id;
  measurements.fingerprint = chunk.system_fingerprint ?? measurements.fingerprint;
  if (chunk.choices?.[0]?.delta?.content) {
    measurements.firstTokenMs ??= elapsedMs;
    measurements.outputMs = elapsedMs - measurements.firstTokenMs;
    measurements.numPieces += 1;
  }
  if (chunk.usage) {
    measurements.numPrompt = chunk.usage.prompt_tokens;
    measurements.numCached = chunk.usage.prompt_tokens_details?.cached_tokens ?? null;
    measurements.numOutput = chunk.usage.completion_tokens;
  }
}

/** Returns a line with the most important measurements. Values that this page estimates are marked with ≈. */
export function summary(measurements, status) {
  const facts = [REMARKS[status], ...timing(measurements), ...counts(measurements)].filter(Boolean);
  if (measurements.numKills) facts.push(["continued by another worker", "A worker was killed during this response"]);
  return facts.map(([text, title]) => element("span", { textContent: text, title }));
}

/** Creates the collapsible table of all measurements. It stays open or closed for all responses in this tab. */
export function measurementsTable(measurements, model) {
  const entries = rows(measurements, model).flatMap(([name, value]) => [
    element("dt", { textContent: name }),
    element("dd", { textContent: value }),
  ]);
  const details = element("details", {
    className: "measurements",
    open: sessionStorage.getItem(DETAILS_OPEN) === "yes",
  });
  details.append(element("summary", { textContent: "Details" }), element("dl", {}, ...entries));
  details.addEventListener("toggle", () => sessionStorage.setItem(DETAILS_OPEN, details.open ? "yes" : "no"));
  return details;
}

function rows(measurements, model) {
  const { queuePosition, queueEstimate, firstTokenMs, numPrompt, numCached, numOutput, id, fingerprint } =
    measurements;
  const shares = [
    ["Model", `${model}${fingerprint ? ` (${fingerprint})` : ""}`],
    ["Queue", queue(queuePosition, queueEstimate)],
    ["First token", firstTokenMs === null ? "" : `after ${duration(firstTokenMs)}`],
    ["Prompt", numPrompt === null ? "" : `${numPrompt} tokens`],
    [
      "Prefix cache",
      numCached === null || !numPrompt
        ? ""
        : `${numCached} tokens reused (${Math.round((100 * numCached) / numPrompt)} %)`,
    ],
    ["Output", numOutput === null ? "" : `${numOutput} tokens`],
    ["Speed", speed(measurements) ?? ""],
    ["Response ID", id],
  ];
  return shares.filter(([, value]) => value !== "");
}

function queue(position, estimate) {
  if (position === null) return "";
  const ahead = position === 1 ? "1 request was ahead" : `${position} requests were ahead`;
  return estimate === null ? ahead : `${ahead}, estimated wait ${duration(estimate * 1000)}`;
}

function timing(measurements) {
  if (measurements.firstTokenMs === null) return [];
  const facts = [
    [`first token ${duration(measurements.firstTokenMs)}`, "Time to first token, measured by this page"],
  ];
  const rate = speed(measurements);
  if (rate !== null) facts.push([rate, "Tokens per second after the first token"]);
  return facts;
}

function counts({ numPieces, numPrompt, numOutput }) {
  if (numPrompt === null) return numPieces ? [[`≈ ${numPieces} tokens`, "Counted by this page"]] : [];
  return [[`${numPrompt} tokens in · ${numOutput} out`, "Prompt tokens, including images, and generated tokens"]];
}

function speed({ numOutput, numPieces, outputMs }) {
  const numTokens = numOutput ?? numPieces;
  if (numTokens < 2 || outputMs < 20) return null;
  const rate = (numTokens - 1) / (outputMs / 1000);
  return `${numOutput === null ? "≈ " : ""}${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`;
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
