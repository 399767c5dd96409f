/** Titles of conversations, which the model writes while nothing else runs. Until then, the first words are the title. */

import { text } from "./i18n.js";
import { promptOptionsOf } from "./options.js";
import { splitThoughts } from "./thoughts.js";

const LANE = "title";
// Pause after an answer: a question that follows at once would have to cancel the request.
const PAUSE_MS = 1_500;
const MAX_TOKENS = 32;
const MAX_CHARACTERS = 60;
const ENDS = ["response.completed", "response.incomplete", "response.failed", "error"];

/** Returns the title in a model's answer; null if there is none. */
export function titleIn(answer) {
  const lines = splitThoughts(answer).answer.split("\n");
  const line = lines.find((one) => /[\p{L}\p{N}]/u.test(one)) ?? "";
  const bare = line
    .replace(/^[\s#*>-]*(?:title|标题|標題)\s*[:：]/iu, "")
    .replace(/^[\s#*>"'“”‘’「」《》-]+|[\s*"'“”‘’「」《》.。]+$/gu, "");
  const length = Array.from(bare).length;
  return length > 0 && length <= MAX_CHARACTERS ? bare : null;
}

export class Titles {
  /** Whether the server's settings allow it. */
  allowed = false;
  #catalogue;
  #send;
  #found;
  #running = null; // {conversation, id, stopping}
  #timer = 0;

  /**
   * @param {object} catalogue of texts
   * @param {(request: object) => boolean} send returns whether the request was sent
   * @param {(id: string, title: string) => void} found called with the title of the conversation of this id
   */
  constructor(catalogue, send, found) {
    this.#catalogue = catalogue;
    this.#send = send;
    this.#found = found;
  }

  /** To be called when an answer has ended: the first one of a conversation is followed by the request for a title. */
  ended(turn, conversation) {
    const isFirst = turn.parent === null && turn.state === "done" && Boolean(turn.responseId);
    if (!this.allowed || !isFirst || conversation.data.named) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(turn, conversation), PAUSE_MS);
  }

  /** To be called before a real request, which must not wait for a title. */
  stop() {
    clearTimeout(this.#timer);
    if (this.#running === null || this.#running.stopping) return;
    this.#running.stopping = true;
    this.#cancel();
  }

  /** To be called when the connection is lost. */
  lost() {
    this.#running = null;
  }

  /** Processes an event of the server; returns whether it belongs to this class. */
  receive(event) {
    if (event.stream_id !== LANE) return false;
    if (event.type === "response.created" && this.#running !== null) {
      this.#running.id = event.response.id;
      if (this.#running.stopping) this.#cancel();
    } else if (ENDS.includes(event.type)) {
      // A cancel that arrives too late is rejected with an error; the terminal event has arrived or will follow.
      if (event.type === "error" && event.response_id) return true;
      if (event.type === "response.completed") this.#completed(event.response);
      this.#running = null;
    }
    return true;
  }

  #ask(turn, conversation) {
    if (this.#running !== null) return;
    const sent = this.#send({
      ...{ type: "response.create", stream_id: LANE, when_idle: true, store: false, truncation: "auto" },
      ...promptOptionsOf(conversation), // so that the prompt begins like that of the answer, whose KV is cached
      ...{ previous_response_id: turn.responseId, input: text(this.#catalogue, "titleRequest") },
      ...{ max_output_tokens: MAX_TOKENS, temperature: 0.2 },
    });
    if (sent) this.#running = { conversation, id: null, stopping: false };
  }

  #completed(response) {
    const parts = (response.output ?? []).flatMap((item) => (item.type === "message" ? item.content : []));
    const title = titleIn(parts.map((part) => part.text ?? "").join(""));
    if (title !== null && this.#running !== null) this.#found(this.#running.conversation.id, title);
  }

  #cancel() {
    if (this.#running.id !== null) this.#send({ type: "response.cancel", response_id: this.#running.id });
  }
}
