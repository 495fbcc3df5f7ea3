// The official Anthropic client for Node.js: streaming helpers, tools, and images in messages and tool results.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { BASE64, COLOR, MODEL, QUESTION } from "./scene.mjs";

const client = new Anthropic({ maxRetries: 0 });
const image = { type: "image", source: { type: "base64", media_type: "image/png", data: BASE64 } };
const user = { role: "user", content: [image, { type: "text", text: QUESTION }] };
const look = {
  name: "look",
  description: "Look at a shape.",
  input_schema: { type: "object", properties: { shape: { type: "string", maxLength: 8 } }, required: ["shape"] },
};

export async function image_input() {
  const message = await client.messages.create({ model: MODEL, max_tokens: 60, temperature: 0, messages: [user] });
  assert.ok(message.content[0].text.includes(COLOR));
}

export async function streaming() {
  const stream = client.messages.stream({ model: MODEL, max_tokens: 60, temperature: 0, messages: [user] });
  let text = "";
  stream.on("text", (delta) => (text += delta));
  assert.equal(await stream.finalText(), text);
  assert.ok(text.includes(COLOR), text);
}

export async function tool_loop() {
  const first = await client.messages.create({
    model: MODEL,
    max_tokens: 100,
    messages: [user],
    tools: [look],
    tool_choice: { type: "any" },
  });
  const calls = first.content.filter((block) => block.type === "tool_use");
  assert.ok(calls.length);
  const results = calls.map(({ id }) => ({ type: "tool_result", tool_use_id: id, content: "ok" }));
  const messages = [user, { role: "assistant", content: first.content }, { role: "user", content: results }];
  const last = await client.messages.create({
    model: MODEL,
    max_tokens: 60,
    messages,
    tools: [look],
    tool_choice: { type: "none" },
  });
  assert.equal(last.content[0].type, "text");
}

export async function image_from_tool() {
  const call = { type: "tool_use", id: "toolu_1", name: "look", input: { shape: "circle" } };
  const result = { type: "tool_result", tool_use_id: "toolu_1", content: [image] };
  const message = await client.messages.create({
    model: MODEL,
    max_tokens: 60,
    temperature: 0,
    tools: [look],
    tool_choice: { type: "none" },
    messages: [
      { role: "user", content: QUESTION },
      { role: "assistant", content: [call] },
      { role: "user", content: [result] },
    ],
  });
  assert.ok(message.usage.input_tokens + (message.usage.cache_read_input_tokens ?? 0) > 100);
}

export async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(MODEL));
}
