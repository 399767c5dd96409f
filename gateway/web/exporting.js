/** Conversations as files: Markdown to read, and JSON to read in again. Loaded when it is used for the first time. */

import { newConversationId } from "./conversation.js";
import { text } from "./i18n.js";
import { checkedOptions, optionsOf } from "./options.js";
import { splitThoughts } from "./thoughts.js";

const FORMAT = "samovar-conversations";
const VERSION = 1;
const ENDED = ["done", "cancelled", "failed"];
const RESPONSE_ID = /^resp_[0-9a-f]{32}$/;
const NAME_CHARACTERS = 60;

/** Returns the displayed turns of a conversation as Markdown. */
export function toMarkdown(catalogue, conversation) {
  const { instructions } = optionsOf(conversation);
  const parts = [`# ${titleOf(catalogue, conversation)}`];
  if (instructions) parts.push(instructions.replace(/^/gm, "> "));
  for (const { question, answer } of conversation.path) {
    parts.push(`## ${text(catalogue, "you")}`, question, `## ${text(catalogue, "assistant")}`, splitThoughts(answer).answer);
  }
  return `${parts.filter((part) => part.trim() !== "").join("\n\n")}\n`;
}

/** Returns conversations with all of their branches as JSON. */
export function toJson(conversations) {
  const data = conversations.map((conversation) => portable(conversation.data));
  return `${JSON.stringify({ format: FORMAT, version: VERSION, conversations: data }, null, 1)}\n`;
}

/**
 * Returns the data of the conversations in such a file; null if it is another kind of file.
 *
 * @param {(id: string) => boolean} isDeleted returns whether a conversation was deleted: it gets another id
 */
export function fromJson(words, isDeleted) {
  let content;
  try {
    content = JSON.parse(words);
  } catch {
    return null;
  }
  if (content?.format !== FORMAT || content.version !== VERSION || !Array.isArray(content.conversations)) return null;
  const found = content.conversations.filter(isConversation).map(portable);
  if (found.length !== content.conversations.length) return null;
  return found.map((data) => (isDeleted(data.id) ? { ...data, id: newConversationId() } : data));
}

/** Returns the name of the file for a conversation, without characters that file systems forbid. */
export function fileName(catalogue, conversation, extension) {
  const name = titleOf(catalogue, conversation).replace(/[\p{Cc}\s\\/:*?"<>|]+/gu, " ");
  return `${Array.from(name).slice(0, NAME_CHARACTERS).join("").trim() || "samovar"}.${extension}`;
}

/** Lets the browser store a text as a file. */
export function download(name, type, words) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([words], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function titleOf(catalogue, conversation) {
  return conversation.title || text(catalogue, "untitled");
}

/** Returns the part of a conversation's data that other devices understand. */
function portable({ id, title, named, changed, turns, chosen, options }) {
  const entries = Object.values(turns).map((turn) => [turn.id, portableTurn(turn)]);
  return {
    ...{ id, title: String(title ?? ""), named: Boolean(named), changed: Number(changed) || 0 },
    ...{ turns: Object.fromEntries(entries), chosen: { ...chosen } },
    options: { ...checkedOptions(options), at: Number(options?.at) || 0 },
  };
}

function portableTurn({ id, parent, question, answer, state, at, reason, usage, responseId }) {
  return {
    ...{ id, parent, question, answer, state: ENDED.includes(state) ? state : "cancelled", at: Number(at) || 0 },
    ...(typeof reason === "string" && { reason }),
    ...(Number.isFinite(usage?.input_tokens) && Number.isFinite(usage?.output_tokens) && { usage }),
    ...(RESPONSE_ID.test(responseId) && { responseId }),
  };
}

function isConversation(data) {
  if (!isId(data?.id) || !isObject(data.turns) || !isObject(data.chosen)) return false;
  return Object.entries(data.turns).every(([id, turn]) => {
    if (!isId(id) || turn?.id !== id || typeof turn.question !== "string" || typeof turn.answer !== "string") return false;
    return turn.parent === null || (Object.hasOwn(data.turns, turn.parent) && isAbove(turn, data.turns));
  });
}

/** Whether the turns before this one lead to a first one, and not in a circle. */
function isAbove(turn, turns) {
  const seen = new Set();
  for (let at = turn; at.parent !== null; at = turns[at.parent]) {
    if (seen.has(at.id) || !Object.hasOwn(turns, at.parent)) return false;
    seen.add(at.id);
  }
  return true;
}

function isId(value) {
  return typeof value === "string" && /^[\w-]{1,100}$/.test(value) && value !== "__proto__";
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
