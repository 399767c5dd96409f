/**
 * Client of the Responses protocol, independent of socket and DOM: turns become requests, events update turns.
 *
 * Each running answer has a separate lane (`stream_id`), which identifies its events. Results are written into the turn
 * and reported as a phase: `unsent`, `crowded` (all `count` lanes are in use), `asked`, `queued` (with `position`, `seconds`),
 * `reading` (with the computed `share` of the prompt, or null), `retrying` (refused for the moment), `stopping`, `more`,
 * `restarted` (all text so far is void) and finally `ended`.
 */

import { optionsOf } from "./options.js";
import { textOf, thoughtsOf } from "./thoughts.js";

// Number of lost connections after which an answer fails; the user can still retry.
const MAX_TRIES = 4;
// Pauses before a request that the gateway could not take is repeated; then it fails. A gateway that stops refuses
// requests, and closes the connection; the next one takes them.
const PAUSES_MS = [1_000, 2_000, 4_000];

/** One running answer. One that `follows` was asked for in another window: that window repeats it if it is cut off. */
class Asking {
  phase = { kind: "unsent" };
  stopping = false;
  whole = false; // whether the request must contain the whole history
  isShared = false; // whether the conversation was stored at the gateway again, which had lost it
  tries = 0;
  refusals = 0;
  pause = 0; // timer until the request is repeated
  resuming = false;
  lane = null;
  #measured = true;
  #firstAt = null;
  #lastAt = null;

  constructor(turn, conversation, follows) {
    this.turn = turn;
    this.conversation = conversation;
    this.follows = follows;
  }

  /** Whether the request has been sent on the current connection. */
  get sent() {
    return this.lane !== null;
  }

  append(delta, now) {
    this.#lastAt = now;
    this.#firstAt ??= now;
    this.turn.answer += delta;
  }

  /** Excludes this answer from the speed measurement: its deltas are no longer in real time. */
  stopMeasuring() {
    this.#measured = false;
  }

  /** Discards all text: the answer will be requested again. */
  reset() {
    this.resuming = false;
    this.#measured = true;
    this.#firstAt = null;
    this.turn.answer = "";
    delete this.turn.responseId;
    delete this.turn.sequence;
  }

  /** Returns tokens per second between the first and the last delta; null if there is nothing to measure. */
  rate(tokens) {
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    return this.#measured && this.#firstAt !== null && tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  }
}

export class Responses {
  #send;
  #phaseChanged;
  #now;
  #lanes;
  #isReady;
  #askings = []; // in the order of the requests

  /**
   * @param {(request: object) => boolean} send returns whether the request was sent
   * @param {(turn: object, phase: object, conversation: object) => void} phaseChanged called at each change of phase
   * @param {() => number} now returns milliseconds of a monotonic clock
   * @param {string[]} lanes names of the lanes; each carries one answer at a time, further answers wait
   * @param {(conversation: object) => boolean} isReady returns whether requests of a conversation can be sent; if not,
   *   `proceed` is called once they can
   */
  constructor(send, phaseChanged, now, lanes, isReady) {
    this.#send = send;
    this.#phaseChanged = phaseChanged;
    this.#now = now;
    this.#lanes = lanes;
    this.#isReady = isReady;
  }

  /** Requests the answer of an open turn, or resumes one that has started; waits for a connection if there is none. */
  ask(turn, conversation) {
    this.#askings.push(new Asking(turn, conversation, false));
    this.#sendWaiting();
  }

  /** Receives the answer of a turn that was asked for in another window. */
  follow(turn, conversation) {
    turn.answer = "";
    delete turn.sequence;
    this.#askings.push(new Asking(turn, conversation, true));
    this.#sendWaiting();
  }

  /** Sends the requests that were waiting. */
  proceed() {
    this.#sendWaiting();
  }

  /** Returns the phase of a running answer; null if it is not running. */
  phaseOf(turn) {
    return this.#of(turn)?.phase ?? null;
  }

  /** Returns the turns of a conversation whose answers are running. */
  running(conversation) {
    return this.#askings.filter((asking) => asking.conversation.id === conversation.id).map((asking) => asking.turn);
  }

  /** Whether an answer has been requested and has no text yet. */
  get isWaiting() {
    return this.#askings.some((asking) => asking.sent && asking.turn.answer === "");
  }

  /** Returns the conversation object with this id that running answers write into; null if there is none. */
  conversation(id) {
    return this.#askings.find((asking) => asking.conversation.id === id)?.conversation ?? null;
  }

  /** Stops an answer; the text so far stays part of the conversation. */
  stop(turn) {
    const asking = this.#of(turn);
    if (asking === undefined || asking.stopping) return;
    asking.stopping = true; // if the id is not known yet, `response.created` triggers the cancel
    if (!asking.sent) return this.#end(asking, { state: "cancelled" });
    this.#cancel(asking);
    this.#setPhase(asking, { kind: "stopping" });
  }

  /** To be called when the connection is open. */
  connected() {
    this.#askings.forEach((asking) => this.#endPause(asking));
    this.#sendWaiting();
  }

  /** To be called when the connection is lost: running answers are resumed on the next one. */
  lost() {
    for (const asking of [...this.#askings]) {
      if (!asking.sent) continue;
      asking.lane = null;
      asking.tries += 1;
      if (asking.stopping) this.#end(asking, { state: "cancelled" });
      else if (asking.tries >= MAX_TRIES) this.#end(asking, { state: "failed", error: { code: "connection_lost" } });
      else this.#setPhase(asking, { kind: "unsent" });
    }
  }

  /** Processes an event of the server. Unknown types are ignored. */
  receive(event) {
    const asking = this.#askings.find(({ lane }) => lane === (event.stream_id ?? ""));
    if (asking === undefined) return;
    if (event.type === "error") return this.#rejected(asking, event);
    if (!(event.sequence_number > (asking.turn.sequence ?? -1))) return; // of no response, or received before the loss
    asking.turn.sequence = event.sequence_number;
    switch (event.type) {
      case "response.created":
        return this.#created(asking, event.response);
      case "response.queued":
        return this.#queued(asking, event);
      case "response.in_progress":
        return this.#started(asking, event);
      case "response.output_text.delta":
        asking.append(event.delta, this.#now());
        return this.#setPhase(asking, { kind: "more" });
      case "response.reasoning_text.delta":
      case "response.reasoning_text.done":
        asking.append(thoughtsOf(event, asking.turn.answer), this.#now());
        return this.#setPhase(asking, { kind: "more" });
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        return this.#ended(asking, event.response);
    }
  }

  #of(turn) {
    return this.#askings.find((asking) => asking.turn.id === turn.id);
  }

  /** Sends waiting requests while there are free lanes. */
  #sendWaiting() {
    for (const asking of [...this.#askings]) {
      if (asking.sent || asking.pause !== 0) continue;
      if (!asking.turn.responseId && !this.#isReady(asking.conversation)) {
        this.#setPhase(asking, { kind: "unsent" });
        continue;
      }
      const lane = this.#lanes.find((name) => this.#askings.every((other) => other.lane !== name));
      if (lane === undefined) {
        this.#setPhase(asking, { kind: "crowded", count: this.#lanes.length });
        continue;
      }
      if (!this.#send({ ...this.#request(asking), ...(lane && { stream_id: lane }) })) {
        this.#setPhase(asking, { kind: "unsent" });
        continue;
      }
      asking.lane = lane;
      this.#setPhase(asking, asking.turn.answer === "" ? { kind: "asked" } : { kind: "more" });
    }
  }

  #request(asking) {
    const { turn, conversation, whole } = asking;
    asking.resuming = Boolean(turn.responseId);
    if (!asking.resuming) return { type: "response.create", ...conversation.request(turn, whole), ...optionsOf(conversation), truncation: "auto", return_progress: true };
    asking.stopMeasuring();
    return { type: "response.resume", response_id: turn.responseId, starting_after: turn.sequence };
  }

  #cancel({ turn }) {
    if (turn.responseId) this.#send({ type: "response.cancel", response_id: turn.responseId });
  }

  #created(asking, response) {
    asking.turn.responseId = response.id;
    if (asking.stopping) this.#cancel(asking);
  }

  #queued(asking, { queue_position: position = null, estimated_wait_seconds: seconds = null }) {
    if (!asking.stopping) this.#setPhase(asking, position === null ? { kind: "asked" } : { kind: "queued", position, seconds });
  }

  /** The prompt is being computed; the event is repeated with the progress of long ones. */
  #started(asking, { prompt_progress: progress = null }) {
    asking.tries = 0;
    const share = progress?.total > 0 ? progress.processed / progress.total : null;
    if (!asking.stopping) this.#setPhase(asking, { kind: "reading", share });
  }

  #ended(asking, response) {
    const outcome = outcomeOf(response);
    // The answer ended unintentionally, with its connection (a reload of the page) or with its gateway (a restart).
    const isCutOff = outcome.state === "cancelled" || outcome.reason === "interrupted";
    if (isCutOff && !asking.stopping && !asking.follows && ++asking.tries < MAX_TRIES) return this.#restart(asking);
    // Of an answer that ended long ago, the server sends only the terminal event.
    asking.turn.answer = textOf(response.output ?? []) || asking.turn.answer;
    const usage = response.usage ?? null;
    const promptTurns = response.samovar?.prompt_turns;
    this.#end(asking, { ...outcome, usage, promptTurns, rate: usage && asking.rate(usage.output_tokens) });
  }

  #rejected(asking, event) {
    const error = event.error ?? {};
    // A cancel that arrives too late is rejected with an error; the terminal event has arrived or will follow.
    if (asking.stopping && event.response_id) return;
    if (asking.follows) return this.#end(asking, { state: "cancelled", unfollowed: true });
    if (asking.resuming) return this.#restart(asking);
    if (error.param === "conversation" && asking.conversation.data.shared && !asking.isShared) {
      asking.isShared = true;
      delete asking.conversation.data.shared;
      return this.#restart(asking);
    }
    const isLost = error.code === "previous_response_not_found" || error.param === "conversation.after";
    if (isLost && !asking.whole) {
      asking.whole = true;
      return this.#restart(asking);
    }
    const pause = PAUSES_MS[asking.refusals];
    if (error.code === "engine_unavailable" && !error.retry_after && pause && !asking.stopping) return this.#retryIn(asking, pause);
    this.#end(asking, { state: "failed", error });
  }

  /** Repeats a refused request after a pause, or when the page is connected again. */
  #retryIn(asking, pause) {
    asking.refusals += 1;
    asking.lane = null;
    asking.reset();
    asking.pause = setTimeout(() => {
      this.#endPause(asking);
      this.#sendWaiting();
    }, pause);
    this.#setPhase(asking, { kind: "retrying" });
  }

  #endPause(asking) {
    clearTimeout(asking.pause);
    asking.pause = 0;
  }

  /** Requests the answer again, from the beginning. */
  #restart(asking) {
    asking.lane = null;
    asking.reset();
    this.#setPhase(asking, { kind: "restarted" });
    this.#sendWaiting();
  }

  #end(asking, outcome) {
    this.#endPause(asking);
    this.#askings.splice(this.#askings.indexOf(asking), 1);
    const { turn } = asking;
    delete turn.sequence;
    Object.assign(turn, outcome);
    if (turn.error?.retry_after) turn.error.until = Date.now() + turn.error.retry_after * 1000;
    // An answer stopped before its first text is not continued: treat it as never requested.
    if (turn.state === "failed" || (turn.state === "cancelled" && turn.answer === "")) delete turn.responseId;
    this.#setPhase(asking, { kind: "ended" });
    this.#sendWaiting();
  }

  #setPhase(asking, phase) {
    asking.phase = phase;
    this.#phaseChanged(asking.turn, phase, asking.conversation);
  }
}

/** Returns how a response has ended, as fields of its turn. */
export function outcomeOf(response) {
  const reason = response.incomplete_details?.reason ?? null;
  if (response.status === "cancelled" || reason === "cancelled") return { state: "cancelled" };
  if (response.status === "failed") return { state: "failed", error: response.error ?? {} };
  return { state: "done", reason };
}
