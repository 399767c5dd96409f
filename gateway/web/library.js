/** The conversations that this browser keeps: texts, titles and the server's ids, one entry each. */

import { Conversation } from "./conversation.js";

const MOST = 500;
const MARK = "samovar.conversation.";

/** Where a browser forbids a page to keep anything, it is kept as long as the page is open. */
class PassingStorage extends Map {
  getItem(key) {
    return this.get(key) ?? null;
  }

  setItem(key, value) {
    this.set(key, value);
  }

  removeItem(key) {
    this.delete(key);
  }
}

/** What this browser lets the page keep things in. */
export function storageOf(name) {
  try {
    const storage = window[name];
    storage.getItem(MARK);
    return storage;
  } catch {
    return new PassingStorage();
  }
}

export class Library {
  #storage;
  #prefix;

  /** @param {string} scope whose conversations: those of another user of this browser are not shown */
  constructor(storage, scope = "") {
    this.#storage = storage;
    this.#prefix = MARK + (scope && `${scope}.`);
  }

  /** Takes over what this browser kept of a time when nobody had to sign in. */
  adopt() {
    const before = new Library(this.#storage);
    if (before.#prefix === this.#prefix) return;
    for (const conversation of before.list()) {
      before.remove(conversation.id);
      this.save(conversation);
    }
  }

  /** All conversations, the one that changed last first. */
  list() {
    return this.#keys()
      .map((key) => this.#read(key))
      .filter((data) => data !== null)
      .sort((one, other) => other.changed - one.changed)
      .map((data) => new Conversation(data));
  }

  /** The conversation of this id, or null. */
  open(id) {
    const data = this.#read(this.#prefix + id);
    return data && new Conversation(data);
  }

  /** Keeps a conversation, with what another window has added to it. Older ones go when there is no room. */
  save(conversation) {
    const kept = this.#read(this.#prefix + conversation.id);
    if (kept !== null) conversation.merge(kept);
    this.#write(conversation.data);
    for (const old of this.list().slice(MOST)) this.remove(old.id);
  }

  remove(id) {
    this.#storage.removeItem(this.#prefix + id);
  }

  /** Whether an event of the browser's storage is about this conversation. */
  isAbout(id, key) {
    return key === this.#prefix + id;
  }

  #write(data) {
    for (;;) {
      try {
        return this.#storage.setItem(this.#prefix + data.id, JSON.stringify(data));
      } catch {
        const oldest = this.list().filter((other) => other.id !== data.id).at(-1);
        if (oldest === undefined) return; // larger than all room there is: it lives as long as the page
        this.remove(oldest.id);
      }
    }
  }

  #keys() {
    const keys = this.#storage instanceof Map ? [...this.#storage.keys()] : Object.keys(this.#storage);
    return keys.filter((key) => key.startsWith(this.#prefix) && !key.slice(this.#prefix.length).includes("."));
  }

  /** An entry, or null for one that is missing or that this page did not write. */
  #read(key) {
    try {
      const data = JSON.parse(this.#storage.getItem(key));
      return typeof data.id === "string" && data.turns && data.chosen ? data : null;
    } catch {
      return null;
    }
  }
}
