/**
 * A conversation as a tree of turns: an edited question and an answer asked for again are siblings of what they
 * replace, and what is shown is one path from a root to a leaf. Its `data` is plain, and is what the browser keeps.
 *
 * A turn is `{id, parent, question, answer, state, at, …}`: `state` is `open` until it has ended as `done`, `cancelled`
 * or `failed`; `responseId` is the server's name for it; `usage`, `rate`, `reason` and `error` say how it went.
 */

const ROOT = "";
const TITLE_LENGTH = 60;
// Bounds of one request: 1 MiB and 1 024 messages. A history beyond them has long left the model's context.
const WHOLE_CHARACTERS = 200_000;
const WHOLE_MESSAGES = 1_000;

/** An id that nobody else has; `crypto.randomUUID` is missing over plain http. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Whether a turn has an answer that a follow-up can build on, be it a part of one. */
function isAnswered(turn) {
  return turn.state === "done" || turn.answer !== "";
}

/** Whether the server keeps this turn: it does not keep what failed. */
function isKept(turn) {
  return Boolean(turn.responseId) && (turn.state === "done" || turn.state === "cancelled");
}

export class Conversation {
  /** @param {object} data of an earlier time; without it a new conversation begins */
  constructor(data = { id: newId(), title: "", changed: Date.now(), turns: {}, chosen: {} }) {
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

  /** The server's ids of all that it keeps of this conversation. */
  get responses() {
    return this.turns.filter(isKept).map((turn) => turn.responseId);
  }

  /** The turns that are shown, from the first to the last. */
  get path() {
    const path = [];
    for (let turn = this.#chosenBelow(ROOT); turn !== undefined; turn = this.#chosenBelow(turn.id)) path.push(turn);
    return path;
  }

  /** Gives the conversation a name; an empty one brings back that of its first question. */
  rename(title) {
    const first = this.path[0];
    this.data.title = title.trim() || (first ? titleOf(first.question) : "");
    this.data.named = title.trim() !== "";
  }

  /** Adds a turn below `parent` (an id, or null for the beginning), and shows it. */
  add(question, parent) {
    const turn = { id: newId(), parent, question, answer: "", state: "open", at: Date.now() };
    this.data.turns[turn.id] = turn;
    this.choose(turn);
    if (!this.data.named && parent === null) this.data.title = titleOf(question);
    this.touch();
    return turn;
  }

  /** The turns that stand where this one stands, oldest first; itself among them. */
  versions(turn) {
    return this.turns.filter((other) => other.parent === turn.parent);
  }

  /** Shows this turn among its versions, and below it what was shown there last. */
  choose(turn) {
    this.data.chosen[turn.parent ?? ROOT] = turn.id;
  }

  /** Notes that something happened: the list shows the newest first. */
  touch() {
    this.data.changed = Date.now();
  }

  /**
   * Takes over what another window has added to the same conversation, or brought to an end; whether there was any.
   *
   * @param {boolean} follow whether to show it, too, and what is still arriving there
   */
  merge(data, follow = false) {
    const isNews = (own, turn) => {
      if (own === undefined) return true;
      return own.state === "open" && (turn.state !== "open" || (follow && turn.answer.length > own.answer.length));
    };
    const news = Object.values(data.turns).filter((turn) => isNews(this.data.turns[turn.id], turn));
    for (const turn of news) {
      const isNew = this.data.turns[turn.id] === undefined;
      this.data.turns[turn.id] = { ...this.data.turns[turn.id], ...turn };
      if (follow && isNew) this.choose(turn);
    }
    return news.length > 0;
  }

  /**
   * What the server is asked for a turn: only the question where it keeps what came before, else all of it.
   *
   * @param {boolean} whole whether to send all of it in any case
   */
  request(turn, whole = false) {
    const before = this.#before(turn);
    const last = before.at(-1);
    if (last === undefined) return { input: turn.question };
    if (isKept(last) && !whole) return { input: turn.question, previous_response_id: last.responseId };
    return { input: [...history(before), { role: "user", content: turn.question }] };
  }

  /** What the server can encode before it is asked: all that is shown, and what is being written; null for nothing. */
  ahead(words = "") {
    const before = this.#before({ parent: this.path.at(-1)?.id ?? null });
    const last = before.at(-1);
    const input = words === "" ? [] : [{ role: "user", content: words }];
    if (last === undefined) return words === "" ? null : { input };
    if (isKept(last)) return { previous_response_id: last.responseId, ...(words !== "" && { input }) };
    return { input: [...history(before), ...input] };
  }

  /** The turns that the model is to know of before this one, oldest first. */
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

/** Messages of these turns, the oldest left out when there are too many. */
function history(turns) {
  const messages = [];
  let characters = 0;
  for (const turn of [...turns].reverse()) {
    characters += turn.question.length + turn.answer.length;
    if (characters > WHOLE_CHARACTERS || messages.length + 2 > WHOLE_MESSAGES) break;
    messages.unshift({ role: "user", content: turn.question }, { role: "assistant", content: turn.answer });
  }
  return messages;
}

/** The beginning of a question, in one line and in whole characters. */
function titleOf(question) {
  const line = question.replace(/\s+/g, " ").trim();
  const letters = Array.from(line);
  return letters.length > TITLE_LENGTH ? `${letters.slice(0, TITLE_LENGTH).join("").trimEnd()}…` : line;
}
