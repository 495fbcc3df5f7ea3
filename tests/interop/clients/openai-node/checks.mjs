// The official OpenAI client for Node.js: streaming helpers, typed parsing and the tool runner, with images.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { COLOR, DATA_URL, MODEL, QUESTION } from "./scene.mjs";

const client = new OpenAI({ maxRetries: 0 });
const part = { type: "image_url", image_url: { url: DATA_URL } };
const user = { role: "user", content: [part, { type: "text", text: QUESTION }] };
const inputPart = { type: "input_image", image_url: DATA_URL, detail: "auto" };
const userInput = { role: "user", content: [inputPart, { type: "input_text", text: QUESTION }] };
const Circle = z.object({ color: z.enum(["red", "green", "blue"]) });
const Look = z.object({ shape: z.string().max(8) });

export async function streaming() {
  const stream = client.chat.completions.stream({ model: MODEL, messages: [user], temperature: 0 });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  assert.equal(await stream.finalContent(), text);
  assert.ok(text.includes(COLOR), text);
  const events = client.responses.stream({ model: MODEL, input: [userInput], temperature: 0 });
  let output = "";
  events.on("response.output_text.delta", (event) => (output += event.delta));
  assert.equal((await events.finalResponse()).output_text, output);
  assert.ok(output.includes(COLOR), output);
}

export async function image_input() {
  const completion = await client.chat.completions.create({ model: MODEL, messages: [user], temperature: 0 });
  assert.ok(completion.choices[0].message.content.includes(COLOR));
  const response = await client.responses.create({ model: MODEL, input: [userInput], temperature: 0 });
  assert.ok(response.output_text.includes(COLOR));
}

export async function tool_loop() {
  const seen = [];
  const runner = client.chat.completions.runTools(
    {
      model: MODEL,
      messages: [user],
      tool_choice: { type: "function", function: { name: "look" } },
      parallel_tool_calls: false,
      max_tokens: 200,
      tools: [zodFunction({ name: "look", parameters: Look, function: (look) => seen.push(look) && "ok" })],
    },
    { maxChatCompletions: 1 },
  );
  const messages = (await runner.done(), runner.messages);
  assert.equal(seen.length, 1);
  assert.equal(messages.at(-1).role, "tool");
  const last = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 40 });
  assert.ok(last.choices[0].message.content);
}

export async function typed_output() {
  const completion = await client.chat.completions.parse({
    model: MODEL,
    messages: [user],
    response_format: zodResponseFormat(Circle, "circle"),
  });
  assert.ok(Circle.parse(completion.choices[0].message.parsed));
  const response = await client.responses.parse({
    model: MODEL,
    input: [userInput],
    text: { format: zodTextFormat(Circle, "circle") },
  });
  assert.ok(Circle.parse(response.output_parsed));
}

export async function typed_output_with_tools() {
  const completion = await client.chat.completions.parse({
    model: MODEL,
    messages: [user],
    response_format: zodResponseFormat(Circle, "circle"),
    tools: [zodFunction({ name: "look", parameters: Look })],
    max_tokens: 100,
  });
  const message = completion.choices[0].message;
  assert.ok(message.parsed ?? message.tool_calls);
}

export async function image_from_tool() {
  const call = { id: "c1", type: "function", function: { name: "look", arguments: '{"shape": "circle"}' } };
  const completion = await client.chat.completions.create({
    model: MODEL,
    temperature: 0,
    messages: [
      { role: "user", content: QUESTION },
      { role: "assistant", tool_calls: [call] },
      { role: "tool", tool_call_id: "c1", content: [part] },
    ],
  });
  assert.ok(completion.usage.prompt_tokens > 100);
  const response = await client.responses.create({
    model: MODEL,
    temperature: 0,
    input: [
      { role: "user", content: QUESTION },
      { type: "function_call", call_id: "c1", name: "look", arguments: '{"shape": "circle"}' },
      { type: "function_call_output", call_id: "c1", output: [inputPart] },
    ],
  });
  assert.ok(response.usage.input_tokens > 100);
}

export async function record_schema() {
  // zod's record uses propertyNames, which JSON schema engines often do not implement.
  const parameters = z.object({ counts: z.record(z.string(), z.number().int()) });
  const completion = await client.chat.completions.create({
    model: MODEL,
    messages: [user],
    tools: [{ type: "function", function: { name: "count", parameters: z.toJSONSchema(parameters) } }],
    max_tokens: 40,
  });
  assert.ok(completion.choices[0]);
}

export async function embeddings() {
  const { data } = await client.embeddings.create({ model: MODEL, input: ["a red circle", "two stars"] });
  assert.equal(data.length, 2);
  assert.ok(data[0].embedding.length > 10);
}
