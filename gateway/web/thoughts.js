/**
 * The thoughts that some models write before their answer. The gateway sends them apart; the page keeps an answer as one
 * text, in which they stand between `<think>` and `</think>`, as in the model's own text.
 */

const CLOSED = /^\s*(?:<think>)?([\s\S]*?)<\/think>\s*/;
const OPEN = /^\s*<think>([\s\S]*)$/;

/** Returns the thoughts of a text, or null, and the answer after them. */
export function splitThoughts(text) {
  // Templates of some models contain the opening tag, so that the text has only the closing one.
  const match = text.includes("</think>") ? CLOSED.exec(text) : OPEN.exec(text);
  if (match === null) return { thoughts: null, answer: text };
  return { thoughts: match[1].trim(), answer: text.slice(match[0].length) };
}

/** Returns the text to append to `answer` for an event with thoughts; "" for other events. */
export function thoughtsOf({ type, delta }, answer) {
  if (type === "response.reasoning_text.delta") return (answer === "" ? "<think>" : "") + delta;
  return type === "response.reasoning_text.done" ? "</think>\n\n" : "";
}

/** Returns the text of a response's output items, with thoughts in their tags. */
export function textOf(items) {
  const texts = items.map(({ type, content }) => {
    const text = (content ?? []).map((part) => part.text ?? "").join("");
    return type === "reasoning" ? `<think>${text}</think>\n\n` : text;
  });
  return texts.join("");
}
