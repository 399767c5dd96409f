/**
 * Encoding ahead: what a reader is about to need is encoded while nobody waits for it. A prompt of a thousand tokens
 * takes seconds on a CPU, and a reader who has pasted it writes on for a while: by the time they send it, it is done.
 */

const LANE = "ahead";
const PAUSE_MS = 500;
// Fewer new characters are encoded as fast when they are sent.
const LEAST_CHARACTERS = 160;
const MOST_CHARACTERS = 200_000;

export class Ahead {
  /** Whether the operator allows it. */
  allowed = false;
  #send;
  #told = ""; // of the draft: what has been asked for
  #wanted = null; // the request that is to be sent when the one before it has ended
  #running = null; // {id, stopping}
  #timer = 0;

  /** @param {(request: object) => boolean} send whether it could be sent */
  constructor(send) {
    this.#send = send;
  }

  /** To be called when a conversation is opened, or the connection is back: its history will be continued. */
  opened(conversation) {
    this.#told = "";
    const request = conversation.ahead();
    if (request !== null) this.#want(request);
  }

  /** To be called while a message is written. */
  drafted(conversation, words) {
    clearTimeout(this.#timer);
    if (words.length < LEAST_CHARACTERS || words.length > MOST_CHARACTERS) return;
    if (words.startsWith(this.#told) && words.length - this.#told.length < LEAST_CHARACTERS) return;
    this.#timer = setTimeout(() => {
      this.#told = words;
      this.#want(conversation.ahead(words));
    }, PAUSE_MS);
  }

  /** To be called when something is really asked: it must not wait for what was only a guess. */
  stop() {
    clearTimeout(this.#timer);
    this.#told = "";
    this.#wanted = null;
    if (this.#running === null || this.#running.stopping) return;
    this.#running.stopping = true;
    this.#cancel();
  }

  /** To be called when the connection is gone. */
  lost() {
    this.#running = null;
    this.#told = "";
  }

  /** Takes an event of the server; whether it was about this. */
  receive(event) {
    if (event.stream_id !== LANE) return false;
    if (event.type === "response.created" && this.#running !== null) {
      this.#running.id = event.response.id;
      if (this.#running.stopping) this.#cancel();
    } else if (["response.completed", "response.incomplete", "response.failed", "error"].includes(event.type)) {
      // A cancel that came too late is refused as well; the end that it missed has come or is about to.
      if (event.type === "error" && event.response_id) return true;
      this.#running = null;
      this.#next();
    }
    return true;
  }

  #want(request) {
    if (!this.allowed) return;
    this.#wanted = { type: "response.create", ...request, generate: false, store: false, truncation: "auto" };
    this.#next();
  }

  #next() {
    if (this.#running !== null || this.#wanted === null) return;
    if (this.#send({ ...this.#wanted, stream_id: LANE })) this.#running = { id: null, stopping: false };
    this.#wanted = null;
  }

  #cancel() {
    if (this.#running.id !== null) this.#send({ type: "response.cancel", response_id: this.#running.id });
  }
}
