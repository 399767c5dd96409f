// The Vercel AI SDK with `@ai-sdk/openai` (Responses and chat) and `@ai-sdk/openai-compatible`. First argument: the base URL.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const name = "smollm2-135m-instruct";
const baseURL = process.argv[2];
const openai = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "samovar", baseURL, apiKey: "none", supportsStructuredOutputs: true });
const Person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(150) });
const weather = tool({
  description: "Tell the weather of a city.",
  inputSchema: z.object({ city: z.string().max(12) }),
  execute: async ({ city }) => `Sunny in ${city}.`,
});

for (const model of [openai(name), openai.chat(name), compatible(name)]) {
  const prompt = [{ role: "user", content: "What is the weather in Paris?" }];
  // The first step must call the tool; the second one answers, and gets the earlier items by reference or in full.
  const result = await generateText({
    model, messages: prompt, tools: { weather }, maxOutputTokens: 60, stopWhen: isStepCount(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
  });
  assert.equal(result.steps[0].toolResults.length, 1);
  assert(result.text);
  const messages = [...prompt, ...result.responseMessages, { role: "user", content: "And in Rome?" }];
  let streamed = "";
  const stream = streamText({ model, messages, maxOutputTokens: 8, onError: ({ error }) => { throw error; } });
  for await (const part of stream.textStream) streamed += part;
  assert(streamed);
  const object = await generateText({
    model, prompt: "Invent a person.", maxOutputTokens: 60, output: Output.object({ schema: Person }),
  });
  assert.equal(typeof object.output.age, "number");
}
console.log(["conversation", "tools", "JSON", "streaming"].join("\n"));
