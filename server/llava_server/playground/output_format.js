// The output format of a response: free text, a sentence from the LLaVA-1.5 paper, JSON, or a JSON schema.

import { byId } from "./dom.js";
import { MAX_NESTING, isNestedTooDeeply } from "./json_schema.js";

/** Formats by name. An instruction is added to the question on its own line, as in the training data of LLaVA-1.5. */
export const FORMATS = {
  text: { label: "Free text" },
  short: { label: "Word or phrase", instruction: "Answer the question using a single word or phrase." },
  option: {
    label: "Letter of an option",
    instruction: "Answer with the option's letter from the given choices directly.",
  },
  caption: { label: "One-sentence caption", instruction: "Provide a one-sentence caption for the provided image." },
  region: { label: "Region description", instruction: "Provide a short description for this region." },
  box: {
    label: "Bounding box",
    instruction: "Provide the bounding box coordinate of the region this sentence describes.",
  },
  json: { label: "JSON object" },
  schema: { label: "JSON schema" },
};

// The length of all values is limited, because a small model may not end a string before the token limit.
const SHAPES = ["circle", "square", "triangle", "star"];
const EXAMPLE = {
  type: "object",
  properties: {
    shapes: { type: "array", items: { enum: SHAPES }, maxItems: 3 },
    has_text: { type: "boolean" },
  },
  required: ["shapes", "has_text"],
  additionalProperties: false,
};

/** @typedef {{kind: string, schema: string}} Format  `schema` is JSON text; it is empty unless kind is "schema" */

export const isJson = ({ kind }) => kind === "json" || kind === "schema";

/** Returns the text that is sent for a question. */
export function questionText(question, { kind }) {
  const instruction = FORMATS[kind].instruction;
  return instruction ? `${question}\n${instruction}` : question;
}

/** Returns the fields of a request that select the format. */
export function formatFields({ kind, schema }) {
  if (kind === "json") return { response_format: { type: "json_object" } };
  if (kind !== "schema") return {};
  const definition = { name: "response", strict: true, schema: parseSchema(schema).schema ?? {} };
  return { response_format: { type: "json_schema", json_schema: definition } };
}

/** Returns the parsed schema, or an error message for the user. @returns {{schema?: object, problem: string}} */
export function parseSchema(text) {
  try {
    const schema = JSON.parse(text);
    const isObject = schema !== null && typeof schema === "object" && !Array.isArray(schema);
    if (isNestedTooDeeply(schema)) return { problem: `It has more than ${MAX_NESTING} levels. Remove some.` };
    return isObject ? { schema, problem: "" } : { problem: "A JSON schema must be an object." };
  } catch (error) {
    return { problem: `This is not valid JSON: ${error.message}` };
  }
}

/** Connects the format list and the schema editor of the composer. */
export function watchFormat() {
  const picker = byId("format");
  const editor = byId("schema");
  picker.replaceChildren(...Object.entries(FORMATS).map(([kind, { label }]) => new Option(label, kind)));
  editor.value = JSON.stringify(EXAMPLE, null, 2);
  const show = () => {
    byId("schema-editor").hidden = picker.value !== "schema";
    const { problem } = parseSchema(editor.value);
    byId("schema-state").textContent = problem || "Valid JSON.";
    editor.setAttribute("aria-invalid", String(problem !== ""));
  };
  picker.addEventListener("change", show);
  editor.addEventListener("input", show);
  byId("schema-indent").addEventListener("click", () => {
    const { schema } = parseSchema(editor.value);
    if (schema) editor.value = JSON.stringify(schema, null, 2);
  });
  show();
}

/** @returns {Format} the selected format */
export function selectedFormat() {
  const kind = byId("format").value;
  return { kind, schema: kind === "schema" ? byId("schema").value : "" };
}
