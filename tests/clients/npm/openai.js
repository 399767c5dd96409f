// Chat completions, the Responses API and its WebSocket mode with the `openai` package. First argument: the base URL.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { ResponsesWS } from "openai/resources/responses/ws";
import { z } from "zod";

const model = "smollm2-135m-instruct";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const parameters = { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"] };
const Person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(150) });

const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const called = await client.chat.completions.create({
  model, messages, tools, tool_choice: "required", max_tokens: 60,
});
const [call] = called.choices[0].message.tool_calls;
assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city"]);
messages.push(called.choices[0].message, { role: "tool", tool_call_id: call.id, content: "Sunny." });
const answer = await client.chat.completions.create({ model, messages, tools, tool_choice: "none", max_tokens: 8 });
assert(answer.choices[0].message.content);
let streamed = "";
const stream = await client.chat.completions.create({
  model, messages: [{ role: "user", content: "Hi" }], max_tokens: 8, stream: true,
});
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
assert(streamed);
const parsed = await client.chat.completions.parse({
  model, messages: [{ role: "user", content: "Invent a person." }], max_tokens: 60,
  response_format: zodResponseFormat(Person, "person"),
});
assert.equal(typeof parsed.choices[0].message.parsed.age, "number");

const first = await client.responses.create({
  model, input: "Weather in Paris?", max_output_tokens: 60, tool_choice: "required",
  tools: [{ type: "function", name: "get_weather", parameters, strict: false }],
});
const second = await client.responses.create({
  model, previous_response_id: first.id, max_output_tokens: 8,
  input: [{ type: "function_call_output", call_id: first.output[0].call_id, output: "Sunny." }],
});
assert(second.output_text);

const socket = new ResponsesWS(client);
socket.send({ type: "response.create", model, input: "Hello!", max_output_tokens: 8 });
let text = "";
for await (const { type, message } of socket) {
  if (type !== "message") continue;
  if (message.type === "response.output_text.delta") text += message.delta;
  if (["response.completed", "response.incomplete", "response.failed", "error"].includes(message.type)) break;
}
socket.close();
assert(text);
console.log(["conversation", "tools", "JSON", "streaming", "WebSocket"].join("\n"));
