// Chats as JSON files. An imported file is not trusted: it is copied field by field, and other fields are dropped.

import { FORMATS, parseSchema } from "./output_format.js";

const KIND = "llava-serve chats";
const VERSION = 1;
const MAX_BYTES = 512 * 1024 * 1024;
const MAX_ITEMS = 100_000; // in each list
const IMAGE_URL = /^data:image\/(?:jpeg|png|webp|gif|bmp|tiff);base64,[A-Za-z0-9+/]+={0,2}$/;
const STATUSES = ["complete", "stopped", "truncated", "failed", "running"];

/** Downloads chats as a JSON file. @param {import("./chat_store.js").Chat[]} chats */
export function download(chats) {
  const text = JSON.stringify({ kind: KIND, version: VERSION, chats });
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = Object.assign(document.createElement("a"), { href: url, download: "llava-serve-chats.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the download may not have started yet
}

/** A message for the user about why a file was rejected. */
export class ImportError extends Error {}

/** Returns the chats in a file, with new IDs. @throws {ImportError} */
export async function readChats(file) {
  const rejected = (reason) => new ImportError(`“${file.name}” cannot be imported. ${reason}`);
  if (file.size > MAX_BYTES) throw rejected(`It has ${file.size} bytes, and the limit is ${MAX_BYTES}.`);
  let content;
  try {
    content = JSON.parse(await file.text());
  } catch {
    throw rejected("It is not a JSON file.");
  }
  if (content?.kind !== KIND || content.version !== VERSION) {
    throw rejected("It was not exported by this version of the playground.");
  }
  try {
    return list(chat)(content.chats, "chats");
  } catch (error) {
    if (error instanceof InvalidField) throw rejected(error.message);
    throw error;
  }
}

class InvalidField extends Error {}

// Each reader returns a copy of a value, or throws InvalidField. `path` is the location of the value in the file.

function valueThat(isValid, description) {
  return (value, path) => {
    if (!isValid(value)) throw new InvalidField(`The field ${path} must be ${description}.`);
    return value;
  };
}

function list(item) {
  const whole = valueThat(
    (value) => Array.isArray(value) && value.length <= MAX_ITEMS,
    `a list with at most ${MAX_ITEMS} items`,
  );
  return (value, path) => whole(value, path).map((entry, index) => item(entry, `${path}[${index}]`));
}

function record(fields) {
  const whole = valueThat(
    (value) => value !== null && typeof value === "object" && !Array.isArray(value),
    "an object",
  );
  return (value, path) => {
    whole(value, path);
    return Object.fromEntries(
      Object.entries(fields).map(([name, read]) => [name, read(value[name], `${path}.${name}`)]),
    );
  };
}

const oneOf = (options) => valueThat((value) => options.includes(value), `one of ${options.join(", ")}`);
const optional = (read) => (value, path) => (value === undefined || value === null ? null : read(value, path));

const text = valueThat((value) => typeof value === "string", "a string");
const number = valueThat((value) => Number.isFinite(value), "a number");
const flag = valueThat((value) => typeof value === "boolean", "true or false");
const imageUrl = valueThat((value) => typeof value === "string" && IMAGE_URL.test(value), "a data: URL of an image");
const no = () => false; // the user may have no file with the name of an imported image
const image = record({ name: text, width: number, height: number, url: imageUrl, isFile: no });
const score = (value, path) => [text(value?.[0], `${path}[0]`), number(value?.[1], `${path}[1]`)];
const token = record({ text, logprob: number, top: list(score) });
const measurements = record({
  queuePosition: optional(number),
  queueEstimate: optional(number),
  firstTokenMs: optional(number),
  outputMs: optional(number),
  numPieces: number,
  numPrompt: optional(number),
  numCached: optional(number),
  numOutput: optional(number),
  id: text,
  fingerprint: text,
  numKills: number,
});
const response = record({
  model: text,
  parameters: record({ temperature: number, maxTokens: optional(number), system: text }),
  wantsTokens: flag,
  text,
  status: oneOf(STATUSES),
  error: text,
  measurements,
  tokens: list(token),
});
const schemaText = valueThat(
  (value) => value === "" || !parseSchema(value).problem,
  "a JSON schema or an empty string",
);
const format = record({ kind: oneOf(Object.keys(FORMATS)), schema: schemaText });
const turn = record({ question: text, images: list(image), format, responses: list(response) });
const content = record({ title: text, updatedAt: number, turns: list(turn) });
const chat = (value, path) => ({ id: newId(), revision: 0, ...content(value, path) });

/** Returns an ID for a chat. crypto.randomUUID is unavailable if the page was loaded over http. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
