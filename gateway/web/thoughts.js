/** The thoughts that some models write before their answer, between `<think>` and `</think>`. */

const CLOSED = /^\s*(?:<think>)?([\s\S]*?)<\/think>\s*/;
const OPEN = /^\s*<think>([\s\S]*)$/;

/** Returns the thoughts of a text, or null, and the answer after them. */
export function splitThoughts(text) {
  // Templates of some models contain the opening tag, so that the text has only the closing one.
  const match = text.includes("</think>") ? CLOSED.exec(text) : OPEN.exec(text);
  if (match === null) return { thoughts: null, answer: text };
  return { thoughts: match[1].trim(), answer: text.slice(match[0].length) };
}
