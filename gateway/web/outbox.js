/** Deletions that the gateway has not confirmed yet. They are stored, so that they outlast the page. */

// Time after which a deletion is carried out by any window: longer than one can be undone.
const UNDO_MS = 20_000;

export class Outbox {
  #storage;
  #key;

  /** @param {string} scope of the user */
  constructor(storage, scope) {
    this.#storage = storage;
    this.#key = `samovar.deletions.${scope}`;
  }

  has(id) {
    return Object.hasOwn(this.#due, id);
  }

  /** Adds a deletion that can still be undone. */
  add(id) {
    this.#store({ ...this.#due, [id]: Date.now() + UNDO_MS });
  }

  /** Makes a deletion final. */
  release(id) {
    this.#store({ ...this.#due, [id]: 0 });
  }

  /** Removes a deletion that was undone or confirmed. */
  remove(id) {
    const { [id]: _, ...others } = this.#due;
    this.#store(others);
  }

  /** Ids of the conversations to delete now. */
  due() {
    const due = Object.entries(this.#due).filter(([, time]) => time <= Date.now());
    return due.map(([id]) => id);
  }

  clear() {
    this.#storage.removeItem(this.#key);
  }

  get #due() {
    try {
      return JSON.parse(this.#storage.getItem(this.#key)) ?? {};
    } catch {
      return {};
    }
  }

  #store(due) {
    try {
      this.#storage.setItem(this.#key, JSON.stringify(due));
    } catch {
      // The storage is full: if the page is closed before the gateway confirms it, the conversation is listed again.
    }
  }
}
