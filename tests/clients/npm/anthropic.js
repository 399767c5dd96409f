// Anthropic's Messages API with `@anthropic-ai/sdk`. First argument: the base URL, with `/v1`.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

const model = "smollm2-135m-instruct";
const client = new Anthropic({ baseURL: process.argv[2].replace(/\/v1$/, ""), apiKey: "none", maxRetries: 0 });
const Person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(150) });
const input_schema = { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"] };

const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const tools = [{ name: "get_weather", description: "Tell the weather of a city.", input_schema }];
const required = { tools, tool_choice: { type: "any" } };
const called = await client.messages.create({ model, messages, max_tokens: 60, ...required });
const [call] = called.content;
assert.equal(call.type, "tool_use");
assert.deepEqual(Object.keys(call.input), ["city"]);
const again = await client.messages.stream({ model, messages, max_tokens: 60, ...required }).finalMessage();
assert.equal(again.stop_reason, "tool_use");
const result = { type: "tool_result", tool_use_id: call.id, content: "Sunny." };
messages.push({ role: "assistant", content: called.content }, { role: "user", content: [result] });
const none = { tools, tool_choice: { type: "none" }, system: "Be brief." };
const answer = await client.messages.create({ model, messages, max_tokens: 8, ...none });
assert(answer.content[0].text);
messages.push({ role: "assistant", content: answer.content }, { role: "user", content: "And in Rome?" });
assert(await client.messages.stream({ model, messages, max_tokens: 8, ...none }).finalText());
const parsed = await client.messages.parse({
  model, messages: [{ role: "user", content: "Invent a person." }], max_tokens: 60,
  output_config: { format: zodOutputFormat(Person) },
});
assert.equal(typeof parsed.parsed_output.age, "number");
console.log(["conversation", "tools", "JSON", "streaming"].join("\n"));
