/**
 * A conversation over the Responses protocol, without socket and without DOM: events in, requests and view calls out.
 *
 * A view is what shows one answer: `unsent()`, `asked()`, `queued(position, seconds)`, `stopping()`, `append(delta)`
 * and finally `finish(outcome)`, where an outcome is `{state: "done"|"cancelled"|"failed", usage, rate, reason, error}`.
 */

const silentView = { unsent() {}, asked() {}, queued() {}, stopping() {}, append() {}, finish() {} };

/** One question and the answer on its way. */
class Turn {
  id = null; // of the response, once the server has made one
  stopping = false;
  #firstAt = null;
  #lastAt = null;

  constructor(input, view, now) {
    this.input = input;
    this.view = view;
    this.now = now;
  }

  /** Whether any of the answer has arrived. */
  get begun() {
    return this.#firstAt !== null;
  }

  append(delta) {
    this.#lastAt = this.now();
    this.#firstAt ??= this.#lastAt;
    this.view.append(delta);
  }

  /** Tokens per second between the first and the last delta; null when there is nothing to measure. */
  rate(tokens) {
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    return tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  }
}

export class Conversation {
  #send;
  #changed;
  #now;
  #previousId = null; // of the response that the next question continues
  #active = null; // the turn on the page; the ones below may belong to a conversation that was left
  #asked = []; // sent, in order, and not yet `response.created`: one lane answers first in, first out
  #known = new Map(); // response id → turn
  #running = null; // a delta names no response: it belongs to the one last in progress

  /**
   * @param {(request: object) => boolean} send whether it could be sent
   * @param {() => void} changed called when `busy` or `stopping` changed
   * @param {() => number} now milliseconds, rising
   */
  constructor(send, changed, now) {
    this.#send = send;
    this.#changed = changed;
    this.#now = now;
  }

  /** Whether an answer is on its way. */
  get busy() {
    return this.#active !== null;
  }

  get stopping() {
    return this.#active?.stopping ?? false;
  }

  /** Asks the next question; without a connection it is held back until there is one. */
  ask(input, view) {
    this.#active = new Turn(input, view, this.#now);
    this.connected();
    this.#changed();
  }

  /** Stops the answer on its way; what has arrived of it stays part of the conversation. */
  stop() {
    if (this.#active === null || this.stopping) return;
    const turn = this.#active;
    this.#cancel(turn);
    if (this.#isHeld(turn)) this.#finish(turn, { state: "cancelled" });
    else turn.view.stopping();
    this.#changed();
  }

  /** Leaves this conversation for a new one; an answer on its way is cancelled and no longer shown. */
  reset() {
    if (this.#active !== null) {
      this.#active.view = silentView;
      this.#cancel(this.#active);
    }
    this.#active = null;
    this.#previousId = null;
    this.#changed();
  }

  /** To be called when a connection is there. */
  connected() {
    const turn = this.#active;
    if (turn === null || !this.#isHeld(turn)) return;
    const request = { type: "response.create", input: turn.input, truncation: "auto" };
    if (this.#previousId !== null) request.previous_response_id = this.#previousId;
    if (this.#send(request)) {
      this.#asked.push(turn);
      turn.view.asked();
    } else {
      turn.view.unsent();
    }
  }

  /** To be called when the connection is gone: what was asked on it will not be answered. */
  lost() {
    const turn = this.#active;
    const held = turn === null || this.#isHeld(turn);
    this.#asked = [];
    this.#known.clear();
    this.#running = null;
    if (held) return;
    this.#finish(turn, turn.stopping ? { state: "cancelled" } : { state: "failed", error: { code: "connection_lost" } });
    this.#changed();
  }

  /** Takes one event of the server. Kinds that this page does not know are let pass. */
  receive(event) {
    switch (event.type) {
      case "response.created":
        return this.#created(event.response);
      case "response.queued":
        return this.#queued(event);
      case "response.in_progress":
        return this.#started(event.response);
      case "response.output_text.delta":
        return this.#running?.append(event.delta);
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        return this.#ended(event.response);
      case "error":
        return this.#refused(event);
    }
  }

  #isHeld(turn) {
    return turn.id === null && !this.#asked.includes(turn);
  }

  #cancel(turn) {
    turn.stopping = true; // without an id there is nothing to name yet: `response.created` sends it then
    if (turn.id !== null) this.#send({ type: "response.cancel", response_id: turn.id });
  }

  #created(response) {
    const turn = this.#asked.shift();
    if (turn === undefined) return;
    turn.id = response.id;
    this.#known.set(turn.id, turn);
    if (turn.stopping) this.#cancel(turn);
  }

  #queued({ response, queue_position: position = null, estimated_wait_seconds: seconds = null }) {
    const turn = this.#known.get(response.id);
    if (turn && !turn.stopping) turn.view.queued(position, seconds);
  }

  #started(response) {
    this.#running = this.#known.get(response.id) ?? null;
    if (this.#running && !this.#running.stopping) this.#running.view.asked();
  }

  #ended(response) {
    const turn = this.#known.get(response.id);
    if (turn === undefined) return;
    this.#known.delete(response.id);
    if (this.#running === turn) this.#running = null;
    const usage = response.usage ?? null;
    const outcome = { ...outcomeOf(response), usage, rate: usage && turn.rate(usage.output_tokens) };
    // An answer stopped before its first word counts as never asked: there is nothing to continue.
    if (turn === this.#active && outcome.state !== "failed" && (turn.begun || outcome.state === "done")) {
      this.#previousId = response.id;
    }
    this.#finish(turn, outcome);
  }

  #refused(event) {
    const named = event.response_id ? this.#known.get(event.response_id) : undefined;
    // A cancel that came too late is refused as well; the answer that it names has ended or is about to.
    if (event.response_id && (named === undefined || named.stopping)) return;
    const turn = named ?? this.#asked.shift() ?? this.#running;
    if (!turn) return;
    this.#known.delete(turn.id);
    if (this.#running === turn) this.#running = null;
    this.#finish(turn, { state: "failed", error: event.error ?? {} });
  }

  #finish(turn, outcome) {
    turn.view.finish(outcome);
    if (turn !== this.#active) return;
    this.#active = null;
    this.#changed();
  }
}

function outcomeOf(response) {
  const reason = response.incomplete_details?.reason ?? null;
  if (response.status === "cancelled" || reason === "cancelled") return { state: "cancelled" };
  if (response.status === "failed") return { state: "failed", error: response.error ?? {} };
  return { state: "done", reason };
}
