// The official Ollama client for Node.js.
import assert from "node:assert/strict";
import { Ollama } from "ollama";
import { BASE64, COLOR, MODEL, QUESTION } from "./scene.mjs";

const ollama = new Ollama({ host: process.env.OLLAMA_HOST });
const user = { role: "user", content: QUESTION, images: [BASE64] };
const options = { temperature: 0 };

export async function image_input() {
  const { message } = await ollama.chat({ model: MODEL, messages: [user], options });
  assert.ok(message.content.includes(COLOR));
  const { response } = await ollama.generate({ model: MODEL, prompt: QUESTION, images: [BASE64], options });
  assert.ok(response.includes(COLOR));
}

export async function streaming() {
  let text = "";
  for await (const chunk of await ollama.chat({ model: MODEL, messages: [user], options, stream: true })) {
    text += chunk.message.content;
  }
  assert.ok(text.includes(COLOR));
}

export async function typed_output() {
  const format = { type: "object", properties: { color: { enum: ["red", "green"] } }, required: ["color"] };
  const { message } = await ollama.chat({ model: MODEL, messages: [user], format });
  assert.ok(["red", "green"].includes(JSON.parse(message.content).color));
}

export async function tool_loop() {
  const messages = [
    user,
    { role: "assistant", content: "", tool_calls: [{ function: { name: "look", arguments: { shape: "circle" } } }] },
    { role: "tool", tool_name: "look", content: "ok" },
  ];
  const parameters = { type: "object", properties: { shape: { type: "string" } } };
  const tools = [{ type: "function", function: { name: "look", description: "Look.", parameters } }];
  const { message } = await ollama.chat({ model: MODEL, messages, tools, options: { ...options, num_predict: 40 } });
  assert.equal(message.role, "assistant");
}

export async function embeddings() {
  const { embeddings } = await ollama.embed({ model: MODEL, input: ["a red circle", "two stars"] });
  assert.equal(embeddings.length, 2);
}

export async function models() {
  const { models } = await ollama.list();
  assert.ok(models.some(({ name }) => name.startsWith(MODEL)));
  assert.ok((await ollama.show({ model: MODEL })).capabilities.includes("vision"));
}
