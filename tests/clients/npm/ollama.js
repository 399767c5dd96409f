// Ollama's API with the `ollama` package. First argument: the base URL, with `/v1`.
import assert from "node:assert/strict";
import { Ollama } from "ollama";
import { z } from "zod";

const model = "smollm2-135m-instruct";
const client = new Ollama({ host: process.argv[2].replace(/\/v1$/, "") });
const Person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(150) });
const parameters = { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", description: "Tell the weather of a city.", parameters } }];

const briefly = { temperature: 0, num_predict: 8 };
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
// Ollama's API cannot require a call; with a format, the model can only call or answer in JSON.
const called = await client.chat({ model, messages, tools, format: "json", options: { temperature: 0 } });
const [call] = called.message.tool_calls;
assert.deepEqual(Object.keys(call.function.arguments), ["city"]);
messages.push(called.message, { role: "tool", tool_name: call.function.name, content: "Sunny." });
const answer = await client.chat({ model, messages, tools, options: briefly });
assert(answer.message.content);
messages.push(answer.message, { role: "user", content: "And in Rome?" });
let streamed = "";
for await (const part of await client.chat({ model, messages, stream: true, options: briefly })) {
  streamed += part.message.content;
}
assert(streamed);
const invent = [{ role: "user", content: "Invent a person." }];
const person = await client.chat({
  model, messages: invent, format: z.toJSONSchema(Person), options: { temperature: 0, num_predict: 60 },
});
Person.parse(JSON.parse(person.message.content));
console.log(["conversation", "tools", "JSON", "streaming"].join("\n"));
