/** Unsent messages, one per conversation, in the browser's storage. */

import { keysOf } from "./library.js";

const PREFIX = "samovar.draft.";
const NEW = "new"; // instead of the id of a conversation without messages, which is not stored
const MAX_CHARACTERS = 200_000;

export class Drafts {
  #storage;
  #prefix;

  /** @param {string} scope of the user */
  constructor(storage, scope = "") {
    this.#storage = storage;
    this.#prefix = PREFIX + (scope && `${scope}.`);
  }

  /** Returns the draft of a conversation. */
  of(conversation) {
    return this.#storage.getItem(this.#key(conversation)) ?? "";
  }

  /** Stores the draft of a conversation; an empty one is removed. */
  store(conversation, words) {
    const key = this.#key(conversation);
    if (words === "" || words.length > MAX_CHARACTERS) return this.#storage.removeItem(key);
    try {
      this.#storage.setItem(key, words);
    } catch {
      // The storage is full: the draft lasts as long as the page.
    }
  }

  /** Removes all drafts of the user. */
  clear() {
    for (const key of keysOf(this.#storage, this.#prefix)) this.#storage.removeItem(key);
  }

  #key(conversation) {
    const isNew = conversation.turns.length === 0 && !conversation.data.shared;
    return this.#prefix + (isNew ? NEW : conversation.id);
  }
}
