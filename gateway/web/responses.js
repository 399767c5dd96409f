/**
 * Answers over the Responses protocol, without socket and without DOM: turns in, requests out; events in, turns changed.
 *
 * Every answer has a lane of its own while it is on its way, so that its events need no other name. What becomes of it
 * is written into its turn and told as a phase: `unsent`, `asked`, `queued` (with `position`, `seconds`), `stopping`,
 * `more`, `anew` (all that arrived is void) and at last `ended`.
 */

// After so many connections without its end, an answer is given up; the reader can still ask for it.
const TRIES = 4;

/** One answer on its way. */
class Asking {
  phase = { kind: "unsent" };
  stopping = false;
  whole = false; // whether the server has to be told all of the conversation
  tries = 0;
  resuming = false;
  lane = null;
  #measured = true;
  #firstAt = null;
  #lastAt = null;

  constructor(turn, conversation) {
    this.turn = turn;
    this.conversation = conversation;
  }

  /** Whether it has been sent on the present connection. */
  get sent() {
    return this.lane !== null;
  }

  append(delta, now) {
    this.#lastAt = now;
    this.#firstAt ??= now;
    this.turn.answer += delta;
  }

  /** From here on its deltas say nothing of the speed. */
  paused() {
    this.#measured = false;
  }

  /** Forgets all that arrived: it will be asked for again. */
  begin() {
    this.resuming = false;
    this.#measured = true;
    this.#firstAt = null;
    this.turn.answer = "";
    delete this.turn.responseId;
    delete this.turn.sequence;
  }

  /** Tokens per second between the first and the last delta; null when there is nothing to measure. */
  rate(tokens) {
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    return this.#measured && this.#firstAt !== null && tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  }
}

export class Responses {
  #send;
  #told;
  #now;
  #lanes;
  #askings = []; // in the order in which they were asked

  /**
   * @param {(request: object) => boolean} send whether it could be sent
   * @param {(turn: object, phase: object, conversation: object) => void} told what became of a turn
   * @param {() => number} now milliseconds, rising
   * @param {string[]} lanes names to send under; at most so many answers are on their way at once, the rest waits here
   */
  constructor(send, told, now, lanes) {
    this.#send = send;
    this.#told = told;
    this.#now = now;
    this.#lanes = lanes;
  }

  /** Asks for the answer of an open turn, or goes on with one that has begun; without a connection it waits for one. */
  ask(turn, conversation) {
    this.#askings.push(new Asking(turn, conversation));
    this.#pump();
  }

  /** What an answer on its way is doing; null when it is not. */
  phaseOf(turn) {
    return this.#of(turn)?.phase ?? null;
  }

  /** The turns of a conversation whose answers are on their way. */
  running(conversation) {
    return this.#askings.filter((asking) => asking.conversation.id === conversation.id).map((asking) => asking.turn);
  }

  /** The conversation of this id if it is being answered: the object that is written into; else null. */
  conversation(id) {
    return this.#askings.find((asking) => asking.conversation.id === id)?.conversation ?? null;
  }

  /** Stops an answer; what has arrived of it stays part of the conversation. */
  stop(turn) {
    const asking = this.#of(turn);
    if (asking === undefined || asking.stopping) return;
    asking.stopping = true; // without an id there is nothing to name yet: `response.created` sends it then
    if (!asking.sent) return this.#end(asking, { state: "cancelled" });
    this.#cancel(asking);
    this.#tell(asking, { kind: "stopping" });
  }

  /** Forgets all answers on their way: somebody else is signed in. */
  abandon() {
    this.#askings.splice(0).forEach((asking) => this.#cancel(asking));
  }

  /** To be called when a connection is there. */
  connected() {
    this.#pump();
  }

  /** To be called when the connection is gone: what is on its way is taken up again on the next. */
  lost() {
    for (const asking of [...this.#askings]) {
      if (!asking.sent) continue;
      asking.lane = null;
      asking.tries += 1;
      if (asking.stopping) this.#end(asking, { state: "cancelled" });
      else if (asking.tries >= TRIES) this.#end(asking, { state: "failed", error: { code: "connection_lost" } });
      else this.#tell(asking, { kind: "unsent" });
    }
  }

  /** Takes one event of the server. Kinds that this page does not know are let pass. */
  receive(event) {
    const asking = this.#askings.find(({ lane }) => lane === (event.stream_id ?? ""));
    if (asking === undefined) return;
    if (event.type === "error") return this.#refused(asking, event);
    if (event.sequence_number <= (asking.turn.sequence ?? -1)) return; // told before the connection was lost
    asking.turn.sequence = event.sequence_number;
    switch (event.type) {
      case "response.created":
        return this.#created(asking, event.response);
      case "response.queued":
        return this.#queued(asking, event);
      case "response.in_progress":
        return this.#started(asking);
      case "response.output_text.delta":
        asking.append(event.delta, this.#now());
        return this.#tell(asking, { kind: "more" });
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        return this.#ended(asking, event.response);
    }
  }

  #of(turn) {
    return this.#askings.find((asking) => asking.turn.id === turn.id);
  }

  /** Sends what waits, as far as there are lanes. */
  #pump() {
    for (const asking of [...this.#askings]) {
      if (asking.sent) continue;
      const lane = this.#lanes.find((name) => this.#askings.every((other) => other.lane !== name));
      if (lane === undefined || !this.#send({ ...this.#request(asking), ...(lane && { stream_id: lane }) })) {
        this.#tell(asking, { kind: "unsent" });
        continue;
      }
      asking.lane = lane;
      this.#tell(asking, asking.turn.answer === "" ? { kind: "asked" } : { kind: "more" });
    }
  }

  #request(asking) {
    const { turn, conversation, whole } = asking;
    asking.resuming = Boolean(turn.responseId);
    if (!asking.resuming) return { type: "response.create", ...conversation.request(turn, whole), truncation: "auto" };
    asking.paused();
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
    if (!asking.stopping) this.#tell(asking, position === null ? { kind: "asked" } : { kind: "queued", position, seconds });
  }

  #started(asking) {
    asking.tries = 0;
    if (!asking.stopping) this.#tell(asking, { kind: "asked" });
  }

  #ended(asking, response) {
    const outcome = outcomeOf(response);
    // It ended with its connection, as by a reload of the page, or with its gateway: nobody wanted it to.
    const isCutOff = outcome.state === "cancelled" || outcome.reason === "interrupted";
    if (asking.resuming && isCutOff && !asking.stopping) return this.#again(asking);
    // What ended long ago is told by its end alone.
    asking.turn.answer = textOf(response) || asking.turn.answer;
    const usage = response.usage ?? null;
    this.#end(asking, { ...outcome, usage, rate: usage && asking.rate(usage.output_tokens) });
  }

  #refused(asking, event) {
    const error = event.error ?? {};
    // A cancel that came too late is refused as well; the answer that it names has ended or is about to.
    if (asking.stopping && event.response_id) return;
    if (asking.resuming) return this.#again(asking);
    if (error.code === "previous_response_not_found" && !asking.whole) {
      asking.whole = true;
      return this.#again(asking);
    }
    this.#end(asking, { state: "failed", error });
  }

  /** Asks once more, from the beginning. */
  #again(asking) {
    asking.lane = null;
    asking.begin();
    this.#tell(asking, { kind: "anew" });
    this.#pump();
  }

  #end(asking, outcome) {
    this.#askings.splice(this.#askings.indexOf(asking), 1);
    const { turn } = asking;
    delete turn.sequence;
    Object.assign(turn, outcome);
    // An answer stopped before its first word counts as never asked: there is nothing to continue.
    if (turn.state === "failed" || (turn.state === "cancelled" && turn.answer === "")) delete turn.responseId;
    this.#tell(asking, { kind: "ended" });
    this.#pump();
  }

  #tell(asking, phase) {
    asking.phase = phase;
    this.#told(asking.turn, phase, asking.conversation);
  }
}

function outcomeOf(response) {
  const reason = response.incomplete_details?.reason ?? null;
  if (response.status === "cancelled" || reason === "cancelled") return { state: "cancelled" };
  if (response.status === "failed") return { state: "failed", error: response.error ?? {} };
  return { state: "done", reason };
}

function textOf(response) {
  const parts = (response.output ?? []).flatMap((item) => item.content ?? []);
  return parts.map((part) => part.text ?? "").join("");
}
