/** Ids of deleted conversations: a window that still holds one in memory must not store it again. */

const MAX_IDS = 500;

export class Tombstones {
  #storage;
  #key;

  /** @param {string} scope of the user */
  constructor(storage, scope) {
    this.#storage = storage;
    this.#key = `samovar.deleted${scope && `.${scope}`}`;
  }

  has(id) {
    return this.#ids.includes(id);
  }

  add(id) {
    this.#store([...this.#ids.filter((other) => other !== id), id].slice(-MAX_IDS));
  }

  remove(id) {
    this.#store(this.#ids.filter((other) => other !== id));
  }

  clear() {
    this.#storage.removeItem(this.#key);
  }

  get #ids() {
    try {
      const ids = JSON.parse(this.#storage.getItem(this.#key));
      return Array.isArray(ids) ? ids : [];
    } catch {
      return [];
    }
  }

  #store(ids) {
    try {
      this.#storage.setItem(this.#key, JSON.stringify(ids));
    } catch {
      // The storage is full: only another window that holds the conversation could store it again.
    }
  }
}
