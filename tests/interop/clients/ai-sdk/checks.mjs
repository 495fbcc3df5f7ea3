// Vercel's AI SDK with its providers for OpenAI, OpenAI-compatible servers and Anthropic.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { BASE64, COLOR, DATA_URL, MODEL, QUESTION } from "./scene.mjs";

const apiKey = process.env.OPENAI_API_KEY;
const baseURL = process.env.OPENAI_BASE_URL;
const openai = createOpenAI({ apiKey, baseURL });
const compatible = createOpenAICompatible({ name: "llava", apiKey, baseURL, supportsStructuredOutputs: true });
const anthropic = createAnthropic({ apiKey, baseURL });
const models = { chat: openai.chat(MODEL), responses: openai.responses(MODEL), compatible: compatible(MODEL) };
const all = { ...models, messages: anthropic(MODEL) };
const user = { role: "user", content: [{ type: "image", image: DATA_URL }, { type: "text", text: QUESTION }] };
const schema = z.object({ color: z.enum(["red", "green", "blue"]) });
const look = tool({
  description: "Look at a shape.",
  inputSchema: z.object({ shape: z.string().max(8) }),
  execute: async () => "ok",
});

async function forEach(models, run) {
  for (const [name, model] of Object.entries(models)) {
    try {
      await run(model, name);
    } catch (error) {
      error.stack = `${name}: ${error.stack} ${error.responseBody ?? ""}`;
      throw error;
    }
  }
}

export const image_input = () =>
  forEach(all, async (model) => {
    const { text } = await generateText({ model, messages: [user], temperature: 0 });
    assert.ok(text.includes(COLOR), text);
  });

export const streaming = () =>
  forEach(all, async (model) => {
    let text = "";
    for await (const delta of streamText({ model, messages: [user], temperature: 0 }).textStream) text += delta;
    assert.ok(text.includes(COLOR), text);
  });

export const tool_loop = () =>
  forEach(all, async (model) => {
    const { steps, text } = await generateText({
      model,
      messages: [user],
      tools: { look },
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
      stopWhen: stepCountIs(2),
      maxOutputTokens: 100,
    });
    assert.equal(steps[0].toolResults[0].output, "ok");
    assert.ok(text);
  });

export const typed_output = () =>
  forEach(all, async (model) => {
    const { output } = await generateText({ model, messages: [user], output: Output.object({ schema }) });
    assert.ok(schema.parse(output));
  });

export const typed_output_with_tools = () =>
  forEach(all, async (model) => {
    // By default, the provider for Anthropic sends the schema as another tool, which the model can call first.
    const providerOptions = { anthropic: { structuredOutputMode: "outputFormat" } };
    const { output } = await generateText({
      model,
      messages: [user],
      tools: { look },
      output: Output.object({ schema }),
      providerOptions,
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
      stopWhen: stepCountIs(2),
      maxOutputTokens: 100,
    });
    assert.ok(schema.parse(output));
  });

// The providers for chat completions send an image in a tool result as text.
export const image_from_tool = () =>
  forEach({ responses: models.responses, messages: all.messages }, async (model) => {
    const call = { toolCallId: "c1", toolName: "look" };
    const value = [{ type: "image-data", mediaType: "image/png", data: BASE64 }];
    const { usage } = await generateText({
      model,
      tools: { look },
      toolChoice: "none",
      messages: [
        { role: "user", content: QUESTION },
        { role: "assistant", content: [{ type: "tool-call", ...call, input: { shape: "circle" } }] },
        { role: "tool", content: [{ type: "tool-result", ...call, output: { type: "content", value } }] },
      ],
    });
    assert.ok(usage.inputTokens > 100, `${usage.inputTokens} tokens`);
  });

export async function embeddings() {
  const model = openai.textEmbeddingModel(MODEL);
  const { embeddings } = await embedMany({ model, values: ["a red circle", "two stars"] });
  assert.equal(embeddings.length, 2);
}
