/** The gateway's copy of a conversation, brought into the browser's one. Times of the gateway are in seconds. */

import { titleOf } from "./conversation.js";
import { outcomeOf } from "./responses.js";

const ENDED = new Set(["completed", "incomplete", "failed", "cancelled"]);

/** Whether the title was changed here and the gateway does not know it yet. */
export function hasNewTitle({ title, metadata = {} }) {
  return title !== "" && title !== (metadata.title ?? "");
}

/** Takes title and time from the gateway's copy, except a title that was changed here meanwhile. */
export function adoptFacts({ data }, body) {
  const isRenamed = data.shared && hasNewTitle(data);
  data.shared = true;
  data.metadata = body.metadata;
  data.changed = body.updated_at * 1000;
  if (!isRenamed && body.metadata.title) data.title = body.metadata.title;
}

/**
 * Shows the branch that was selected last on any device, unless the user has just selected another one here.
 *
 * @returns {boolean} whether the selected turn is known
 */
export function adoptHead(conversation, body) {
  const { data } = conversation;
  if (body.head === null || body.head === data.head || data.stepped) return true;
  const turn = conversation.turns.find(({ entry }) => entry === body.head);
  if (turn === undefined) return false;
  data.head = body.head;
  conversation.chooseBranch(turn);
  return true;
}

/** Notes the gateway's ids of turns that were asked for here. */
export function adoptIds(conversation, body) {
  for (const { id, key } of body.turns) {
    const turn = conversation.data.turns[key];
    if (turn?.responseId === id) turn.entry = id;
  }
}

/** Returns the gateway's ids of turns, without those of requests that were repeated. */
function currentIds(turns) {
  return new Set(new Map(turns.map(({ id, key }) => [key ?? id, id])).values());
}

/**
 * Whether the gateway has other turns than the browser, or has ended some that are open here.
 *
 * @param {(turn: object) => boolean} isRunning returns whether this window is receiving the turn's answer
 */
export function lacksTurns(conversation, body, isRunning) {
  const current = currentIds(body.turns);
  const known = new Set(conversation.turns.map(({ entry }) => entry));
  const isOutdated = (turn) => !current.has(turn.entry) || (turn.state === "open" && !isRunning(turn));
  return [...current].some((id) => !known.has(id)) || conversation.turns.some((turn) => turn.entry && isOutdated(turn));
}

/** Brings all turns up to date; those that exist only in the browser, such as unsent ones, stay. */
export function adoptTurns(conversation, { conversation: body, data: listed }, isRunning) {
  const { data } = conversation;
  const current = currentIds(listed);
  const before = new Map(body.turns.map((turn) => [turn.id, turn.previous_response_id]));
  const own = new Map(); // the gateway's id → the browser's
  const kept = new Set();
  const parentOf = (id) => {
    for (let on = before.get(id); on; on = before.get(on)) if (own.has(on)) return own.get(on);
    return null;
  };
  for (const turn of listed) {
    const name = turn.key ?? turn.id;
    own.set(turn.id, name);
    if (!current.has(turn.id)) continue;
    const pairs = pairsOf(turn.items);
    if (data.turns[name] === undefined) addTurns(data, turn, name, parentOf(turn.id), pairs);
    const added = data.turns[name];
    added.entry = turn.id;
    added.at = turn.created_at * 1000; // devices with other clocks list versions in the same order
    if (!isRunning(added)) Object.assign(added, resultOf(turn, pairs.at(-1), added));
    for (const id of [name, ...pairs.slice(1).map((_, number) => partOf(turn, number))]) kept.add(id);
  }
  for (const turn of conversation.turns) {
    if (turn.entry && !kept.has(turn.id) && !isRunning(turn)) removeTurn(conversation, turn);
  }
  if (data.title === "" && conversation.path.length > 0) data.title = titleOf(conversation.path[0].question);
  data.loaded = true;
}

/** Adds the page's turns for a turn of the gateway, which may hold a longer history. */
function addTurns(data, turn, name, parent, pairs) {
  pairs.forEach(({ question, answer }, number) => {
    const isLast = number === pairs.length - 1;
    const id = isLast ? name : partOf(turn, number);
    data.turns[id] = { id, parent, question, answer, state: "done", at: turn.created_at * 1000, entry: turn.id };
    parent = id;
  });
}

function partOf(turn, number) {
  return `${turn.id}.${number}`;
}

/** Removes a turn; those after it follow the one before it. */
function removeTurn(conversation, turn) {
  delete conversation.data.turns[turn.id];
  for (const other of conversation.turns) if (other.parent === turn.id) other.parent = turn.parent;
}

/** Returns the questions and answers of items. */
function pairsOf(items) {
  const pairs = [];
  for (const item of items.filter(({ type, role }) => type === "message" && ["user", "assistant"].includes(role))) {
    const words = item.content.map((part) => part.text ?? "").join("");
    if (pairs.length === 0 || (item.role === "user" && pairs.at(-1).isAnswered)) pairs.push({ question: "", answer: "" });
    const pair = pairs.at(-1);
    const field = item.role === "user" ? "question" : "answer";
    pair[field] = [pair[field], words].filter(Boolean).join("\n\n");
    pair.isAnswered ||= item.role === "assistant";
    pair.isCut = item.status === "incomplete";
  }
  return pairs.length > 0 ? pairs : [{ question: "", answer: "" }];
}

/** Returns the state of a turn at the gateway, as fields of the page's turn. */
function resultOf(turn, { answer, isCut = false }, known) {
  if (turn.status !== undefined && !ENDED.has(turn.status)) return { state: "open", responseId: turn.id, answer };
  const isKnown = known.state !== "open" && known.answer === answer && known.responseId === turn.id;
  if (turn.status === undefined && isKnown) return {};
  const outcome = turn.status === undefined ? { state: "done", reason: isCut ? "unknown" : null } : outcomeOf(turn);
  const { error = null, ...ended } = outcome;
  const canContinue = outcome.state === "done" || (outcome.state === "cancelled" && answer !== "");
  return {
    ...ended,
    answer,
    error: error && { ...error, until: known.error?.until },
    responseId: canContinue ? turn.id : undefined,
    usage: turn.usage ?? known.usage ?? null,
    unfollowed: undefined,
  };
}
