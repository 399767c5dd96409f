/**
 * Prefill in advance: computes the KV cache of the conversation and the draft before the user sends it. A prompt of a
 * thousand tokens takes seconds on a CPU; a user who has pasted one usually types on for longer than that.
 */

import { promptOptionsOf } from "./options.js";

const LANE = "ahead";
const PAUSE_MS = 500;
// Minimum number of new characters of a draft: fewer are computed fast enough when they are sent.
const MIN_CHARACTERS = 160;
const MAX_CHARACTERS = 200_000;

export class Ahead {
  /** Whether the server's settings allow it. */
  allowed = false;
  #send;
  #requested = ""; // the draft as of the last request
  #next = null; // the request to send when the running one has ended
  #running = null; // {id, stopping}
  #timer = 0;
  #opening = 0;

  /** @param {(request: object) => boolean} send returns whether the request was sent */
  constructor(send) {
    this.#send = send;
  }

  /** To be called when a conversation is opened or the connection is restored: prepares its history. */
  opened(conversation) {
    this.#requested = "";
    clearTimeout(this.#opening);
    // After a pause: a question that follows at once would have to cancel the request, and lose what it holds.
    this.#opening = setTimeout(() => {
      const request = conversation.ahead();
      if (request !== null) this.#schedule({ ...request, ...promptOptionsOf(conversation) });
    }, PAUSE_MS);
  }

  /** To be called when the draft changes. */
  draftChanged(conversation, words) {
    clearTimeout(this.#timer);
    if (words.length < MIN_CHARACTERS || words.length > MAX_CHARACTERS) return;
    if (words.startsWith(this.#requested) && words.length - this.#requested.length < MIN_CHARACTERS) return;
    this.#timer = setTimeout(() => {
      this.#requested = words;
      this.#schedule({ ...conversation.ahead(words), ...promptOptionsOf(conversation) });
    }, PAUSE_MS);
  }

  /** To be called before a real request, which must not wait for a speculative one. */
  stop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#opening);
    this.#requested = "";
    this.#next = null;
    if (this.#running === null || this.#running.stopping) return;
    this.#running.stopping = true;
    this.#cancel();
  }

  /** To be called when the connection is lost. */
  lost() {
    this.#running = null;
    this.#requested = "";
  }

  /** Processes an event of the server; returns whether it belongs to this class. */
  receive(event) {
    if (event.stream_id !== LANE) return false;
    if (event.type === "response.created" && this.#running !== null) {
      this.#running.id = event.response.id;
      if (this.#running.stopping) this.#cancel();
    } else if (["response.completed", "response.incomplete", "response.failed", "error"].includes(event.type)) {
      // A cancel that arrives too late is rejected with an error; the terminal event has arrived or will follow.
      if (event.type === "error" && event.response_id) return true;
      this.#running = null;
      this.#sendNext();
    }
    return true;
  }

  #schedule(request) {
    if (!this.allowed) return;
    this.#next = { type: "response.create", ...request, generate: false, store: false, truncation: "auto" };
    this.#sendNext();
  }

  #sendNext() {
    if (this.#running !== null || this.#next === null) return;
    if (this.#send({ ...this.#next, stream_id: LANE })) this.#running = { id: null, stopping: false };
    this.#next = null;
  }

  #cancel() {
    if (this.#running.id !== null) this.#send({ type: "response.cancel", response_id: this.#running.id });
  }
}
