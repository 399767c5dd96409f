/** The conversations in the browser's storage: texts, titles and the server's ids, one entry per conversation. */

import { Conversation } from "./conversation.js";
import { Tombstones } from "./tombstones.js";

const MAX_CONVERSATIONS = 500;
const PREFIX = "samovar.conversation.";

/** Storage that lasts as long as the page, for browsers that forbid persistent storage. */
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

/** Returns the browser's storage of this name, or a temporary one if the page may not use it. */
export function storageOf(name) {
  try {
    const storage = window[name];
    storage.getItem(PREFIX);
    return storage;
  } catch {
    return new PassingStorage();
  }
}

/** Returns the keys of this user's entries, which start with `prefix`; those of other users have another scope after it. */
export function keysOf(storage, prefix) {
  const keys = storage instanceof Map ? [...storage.keys()] : Object.keys(storage);
  return keys.filter((key) => key.startsWith(prefix) && !key.slice(prefix.length).includes("."));
}

export class Library {
  #prefix;
  #deleted;
  #lost;

  /**
   * @param {string} scope of the user: conversations of other users of this browser are not shown
   * @param {(what: "evicted"|"unsaved") => void} lost called when old conversations were deleted for want of space, or
   *   when a conversation could not be stored at all, unless the gateway has them
   */
  constructor(storage, scope = "", lost = () => {}) {
    this.storage = storage;
    this.scope = scope;
    this.#prefix = PREFIX + (scope && `${scope}.`);
    this.#deleted = new Tombstones(storage, scope);
    this.#lost = lost;
  }

  /** Moves conversations that were stored without sign-in to the current user. */
  adopt() {
    const before = new Library(this.storage);
    if (before.#prefix === this.#prefix) return;
    for (const conversation of before.list()) {
      before.drop(conversation.id);
      this.save(conversation);
    }
  }

  /** Returns all conversations, the most recently changed first. */
  list() {
    return keysOf(this.storage, this.#prefix)
      .map((key) => this.#read(key))
      .filter((data) => data !== null)
      .sort((one, other) => other.changed - one.changed)
      .map((data) => new Conversation(data));
  }

  /** Adds conversations from a file. */
  add(conversations) {
    for (const conversation of conversations) this.save(conversation);
  }

  /** Returns all conversations with their turns. */
  async all() {
    return this.list();
  }

  /** Returns the conversation of this id, or null. */
  open(id) {
    const data = this.#read(this.#prefix + id);
    return data && new Conversation(data);
  }

  /** Stores a conversation, merged with changes of other windows. Evicts the oldest ones if there is no space. */
  save(conversation) {
    if (this.#deleted.has(conversation.id)) return; // by another window
    const stored = this.#read(this.#prefix + conversation.id);
    if (stored !== null) conversation.merge(stored);
    this.#write(conversation.data);
    if (keysOf(this.storage, this.#prefix).length <= MAX_CONVERSATIONS) return; // the list would be read for each change
    for (const old of this.list().slice(MAX_CONVERSATIONS)) if (this.#isReplaceable(old)) this.#evict(old);
  }

  /** Deletes a conversation: no window stores it again. */
  remove(id) {
    this.#deleted.add(id);
    this.drop(id);
  }

  /** Stores a deleted conversation again. */
  restore(conversation) {
    this.#deleted.remove(conversation.id);
    this.save(conversation);
  }

  /** Whether a conversation was deleted, by whichever window. */
  isDeleted(id) {
    return this.#deleted.has(id);
  }

  /** Removes an entry; the conversation may be stored again. */
  drop(id) {
    this.storage.removeItem(this.#prefix + id);
  }

  /** Removes everything of the user. */
  clear() {
    for (const key of keysOf(this.storage, this.#prefix)) this.storage.removeItem(key);
    this.#deleted.clear();
  }

  // What a library does that is shared with a gateway: here, conversations are only in this browser.

  connected() {}

  receive() {
    return false;
  }

  isReady() {
    return true;
  }

  typed() {}

  draftSaved() {}

  refresh() {}

  forget() {}

  /** Whether a conversation may be removed for another one: one that the gateway does not have must stay. */
  #isReplaceable({ data }) {
    return this.scope === "" || data.shared === true;
  }

  #evict({ id, data }) {
    this.drop(id);
    if (!data.shared) this.#lost("evicted");
  }

  /** Whether the key of a storage event is that of this conversation. */
  isAbout(id, key) {
    return key === this.#prefix + id;
  }

  #write(data) {
    for (;;) {
      try {
        return this.storage.setItem(this.#prefix + data.id, JSON.stringify(data));
      } catch {
        const oldest = this.list().filter((other) => other.id !== data.id && this.#isReplaceable(other)).at(-1);
        if (oldest !== undefined) this.#evict(oldest);
        else return data.shared ? this.drop(data.id) : this.#lost("unsaved"); // larger than the storage
      }
    }
  }

  /** Returns an entry, or null if it is missing or was not written by this page. */
  #read(key) {
    try {
      const data = JSON.parse(this.storage.getItem(key));
      return typeof data.id === "string" && data.turns && data.chosen ? data : null;
    } catch {
      return null;
    }
  }
}
