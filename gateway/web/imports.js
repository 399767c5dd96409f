/** Conversations that are stored only in the browser, sent to the gateway. An interrupted import can be repeated. */

import { newConversationId, newId } from "./conversation.js";

const CONVERSATION = /^conv_[0-9a-f]{32}$/;
const RESPONSE = /^resp_[0-9a-f]{32}$/;
const DIGITS = 32;
const HEXADECIMAL = /^[0-9a-f]{1,32}$/;
// Characters of the turns in one request; the gateway takes 1 MiB, and a character has up to four bytes.
const MAX_CHARACTERS = 200_000;
const MAX_TURNS = 100;

/**
 * Gives conversations and turns that earlier versions of the page have stored ids in the gateway's form.
 *
 * @param {import("./library.js").Library} library
 * @returns {Map<string, string>} new ids of conversations by their old ones
 */
export function prepareImport(library) {
  const renamed = new Map();
  for (const conversation of library.list()) {
    const { id } = conversation;
    if (CONVERSATION.test(id)) continue;
    conversation.data.id = HEXADECIMAL.test(id) ? `conv_${id.padEnd(DIGITS, "0")}` : newConversationId();
    library.save(conversation);
    library.drop(id);
    renamed.set(id, conversation.id);
  }
  return renamed;
}

/**
 * Stores a conversation at the gateway with all turns that have answers.
 *
 * @returns {Promise<"done"|"failed"|"refused"|"gone">} `failed`: it can be repeated; `refused`: that would not help
 */
export async function share(conversation, gateway) {
  const { id, data } = conversation;
  const turns = answered(conversation);
  const created = { id, metadata: { title: data.title }, created_at: turns[0]?.created_at };
  let found = await gateway.create(created);
  for (const part of portions(turns)) {
    if (found.status !== 200) break;
    found = await gateway.addTurns(id, part);
  }
  if (found.status === 404) return "gone";
  if (found.status !== 200) return found.status >= 400 && found.status < 500 && found.status !== 401 ? "refused" : "failed";
  const stored = new Set(found.body.turns.map((turn) => turn.id));
  if (turns.some((turn) => !stored.has(turn.id))) return "refused";
  for (const turn of turns) {
    const own = data.turns[turn.key];
    own.entry = turn.id;
    own.responseId = turn.id;
  }
  Object.assign(data, { shared: true, loaded: true, metadata: found.body.metadata, head: found.body.head });
  if (turns.length > 0) data.stepped = true; // the branch that is shown here
  return "done";
}

/** Returns the turns with answers in the gateway's form, each after the one that it continues. */
function answered({ turns, data }) {
  const ended = turns.filter((turn) => turn.state !== "open" && turn.state !== "failed" && turn.answer !== "");
  const ids = new Map(ended.map((turn) => [turn.id, idOf(turn)]));
  const previous = (turn) => {
    for (let on = data.turns[turn.parent]; on !== undefined; on = data.turns[on.parent]) if (ids.has(on.id)) return ids.get(on.id);
    return null;
  };
  return ended.map((turn) => ({
    id: ids.get(turn.id),
    previous_response_id: previous(turn),
    key: turn.id.slice(0, 64),
    created_at: turn.at / 1000,
    items: [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.answer },
    ],
  }));
}

function idOf(turn) {
  if (RESPONSE.test(turn.responseId)) return turn.responseId;
  return `resp_${HEXADECIMAL.test(turn.id) ? turn.id.padEnd(DIGITS, "0") : newId(DIGITS / 2)}`;
}

/** Splits turns into parts that fit into one request. */
function portions(turns) {
  const parts = [];
  let characters = Infinity;
  for (const turn of turns) {
    const size = turn.items.reduce((sum, { content }) => sum + content.length, 0);
    if (characters + size > MAX_CHARACTERS || parts.at(-1).length >= MAX_TURNS) {
      parts.push([]);
      characters = 0;
    }
    parts.at(-1).push(turn);
    characters += size;
  }
  return parts;
}
