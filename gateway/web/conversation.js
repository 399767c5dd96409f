/**
 * A conversation as a tree of turns: an edited question or a regenerated answer is a sibling of the turn that it
 * replaces; the page shows one path from a root to a leaf. The browser stores the plain object `data`.
 *
 * A turn is `{id, parent, question, answer, state, at, …}`. `state` is `open` until the turn ends as `done`, `cancelled`
 * or `failed`; `responseId` is the server's id; `usage`, `rate`, `reason` and `error` describe the result.
 *
 * A conversation that is stored at the gateway is `shared`, with the gateway's `metadata`, `head` and `draft` as they were
 * last seen. `entry` is the gateway's id of a turn in it, and the turn's own id is its `key` there.
 */

import { splitThoughts } from "./thoughts.js";

const ROOT = "";
const TITLE_LENGTH = 60;
// Limits of the history in one request; the gateway's are 1 MiB and 1 024 messages. A longer history exceeds the
// model's context anyway.
const WHOLE_CHARACTERS = 200_000;
const WHOLE_MESSAGES = 1_000;

/** Returns a unique id in hexadecimal digits; `crypto.randomUUID` does not exist over plain http. */
export function newId(bytes = 12) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Returns a new id of a conversation in the gateway's form. */
export function newConversationId() {
  return `conv_${newId(16)}`;
}

/** Whether a turn has at least a partial answer that a follow-up can build on. */
function isAnswered(turn) {
  return turn.state === "done" || turn.answer !== "";
}

/** Whether the server can continue this turn. */
function isStored(turn) {
  return Boolean(turn.responseId) && (turn.state === "done" || turn.state === "cancelled");
}

export class Conversation {
  /** @param {object} data of a stored conversation; default: a new conversation */
  constructor(data = { id: newConversationId(), title: "", changed: Date.now(), turns: {}, chosen: {} }) {
    this.data = data;
  }

  get id() {
    return this.data.id;
  }

  get title() {
    return this.data.title;
  }

  /** All turns, oldest first. */
  get turns() {
    return Object.values(this.data.turns);
  }

  /** Ids of the responses that the server has stored of this conversation. */
  get responses() {
    return this.turns.filter(isStored).map((turn) => turn.responseId);
  }

  /** The displayed turns, from the first to the last. */
  get path() {
    const path = [];
    for (let turn = this.#chosenBelow(ROOT); turn !== undefined; turn = this.#chosenBelow(turn.id)) path.push(turn);
    return path;
  }

  /** Sets the title; an empty one restores the default, the first question. */
  rename(title) {
    const first = this.path[0];
    this.data.title = title.trim() || (first ? titleOf(first.question) : "");
    this.data.named = title.trim() !== "";
    this.data.renamed = Date.now();
  }

  /** Adds a turn below `parent` (an id, or null for a root), and selects it. */
  add(question, parent) {
    const turn = { id: newId(), parent, question, answer: "", state: "open", at: Date.now() };
    this.data.turns[turn.id] = turn;
    this.choose(turn);
    if (!this.data.named && parent === null) this.data.title = titleOf(question);
    this.touch();
    return turn;
  }

  /** Returns this turn and its siblings, oldest first. */
  versions(turn) {
    return this.turns.filter((other) => other.parent === turn.parent).sort((one, other) => one.at - other.at);
  }

  /** Selects this turn among its siblings. The selection below it does not change. */
  choose(turn) {
    this.data.chosen[turn.parent ?? ROOT] = turn.id;
  }

  /** Selects this turn for the user, who sees the same branch on other devices. */
  step(turn) {
    this.choose(turn);
    this.data.stepped = true;
  }

  /** Selects the branch that leads to this turn. */
  chooseBranch(turn) {
    for (let on = turn; on !== undefined; on = this.#find(on.parent)) this.choose(on);
  }

  /** Updates the time of the last change; the list shows the newest first. */
  touch() {
    this.data.changed = Date.now();
  }

  /**
   * Merges what another window has changed in the same conversation: its title and options, and turns that it has added or
   * completed. Returns these turns.
   *
   * @param {boolean} follow whether to select new turns, and to merge growing answers too
   */
  merge(data, follow = false) {
    const { title, named, renamed = 0 } = data;
    if (renamed > (this.data.renamed ?? 0)) Object.assign(this.data, { title, named, renamed });
    if ((data.options?.at ?? 0) > (this.data.options?.at ?? 0)) this.data.options = data.options;
    const isNewer = (own, turn) => {
      if (own === undefined) return true;
      return own.state === "open" && (turn.state !== "open" || (follow && turn.answer.length > own.answer.length));
    };
    // The gateway's copy decides about the other turns of a shared conversation.
    const isOnlyHere = (turn) => !this.data.shared || (!turn.entry && !turn.responseId);
    const newer = Object.values(data.turns).filter((turn) => isOnlyHere(turn) && isNewer(this.data.turns[turn.id], turn));
    for (const turn of newer) {
      const added = this.data.turns[turn.id] === undefined;
      this.data.turns[turn.id] = { ...this.data.turns[turn.id], ...turn };
      if (follow && added) this.choose(turn);
    }
    return newer;
  }

  /**
   * Returns the request for a turn: only the question if the server has stored the turn before, otherwise the history.
   *
   * @param {boolean} whole whether to send the history even then
   */
  request(turn, whole = false) {
    const before = this.#before(turn);
    const last = before.at(-1);
    const previous = last !== undefined && isStored(last) && !whole ? last.responseId : null;
    const isFirst = last === undefined || previous !== null;
    const input = isFirst ? turn.question : [...history(before), { role: "user", content: turn.question }];
    if (this.data.shared) return { input, conversation: { id: this.id, after: previous, key: turn.id } };
    return { input, ...(previous !== null && { previous_response_id: previous }) };
  }

  /** Returns a request that prepares the displayed turns and the draft `words`; null if there are none. */
  ahead(words = "") {
    const before = this.#before({ parent: this.path.at(-1)?.id ?? null });
    const last = before.at(-1);
    const input = words === "" ? [] : [{ role: "user", content: words }];
    if (last === undefined) return words === "" ? null : { input };
    if (isStored(last)) return { previous_response_id: last.responseId, ...(words !== "" && { input }) };
    return { input: [...history(before), ...input] };
  }

  /** Returns the answered turns before this one, oldest first. */
  #before(turn) {
    const before = [];
    for (let parent = this.#find(turn.parent); parent !== undefined; parent = this.#find(parent.parent)) {
      if (isAnswered(parent)) before.unshift(parent);
    }
    return before;
  }

  #find(id) {
    return id === null ? undefined : this.data.turns[id];
  }

  #chosenBelow(id) {
    const chosen = this.data.turns[this.data.chosen[id]];
    if (chosen !== undefined) return chosen;
    return this.turns.filter((turn) => (turn.parent ?? ROOT) === id).at(-1);
  }
}

/** Returns the messages of these turns, without the oldest ones if they exceed the limits. */
function history(turns) {
  const messages = [];
  let characters = 0;
  for (const turn of [...turns].reverse()) {
    characters += turn.question.length + turn.answer.length;
    if (characters > WHOLE_CHARACTERS || messages.length + 2 > WHOLE_MESSAGES) break;
    messages.unshift({ role: "user", content: turn.question }, { role: "assistant", content: splitThoughts(turn.answer).answer });
  }
  return messages;
}

/** Returns the beginning of a question, in one line and in whole characters. */
export function titleOf(question) {
  const line = question.replace(/\s+/g, " ").trim();
  const letters = Array.from(line);
  return letters.length > TITLE_LENGTH ? `${letters.slice(0, TITLE_LENGTH).join("").trimEnd()}…` : line;
}
