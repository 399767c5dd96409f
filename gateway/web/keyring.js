/** The key of whoever is signed in, kept for this window or for this browser. It never goes into an address. */

const KEY = "samovar.key";
// What an HTTP header and a WebSocket's subprotocol can carry.
const SENDABLE = /^[\w.~-]{1,256}$/;

/** Whether a text could be a key at all. */
export function couldBeKey(text) {
  return SENDABLE.test(text);
}

export class Keyring {
  #lasting;
  #passing;

  /** Storages of the browser: one that lasts, one that ends with the window. */
  constructor(lasting, passing) {
    this.#lasting = lasting;
    this.#passing = passing;
  }

  get key() {
    return this.#passing.getItem(KEY) ?? this.#lasting.getItem(KEY);
  }

  /** Under which name this user's conversations lie in the browser: nothing that the key could be found from. */
  get scope() {
    if (this.key === null) return "";
    let hash = 0x811c9dc5; // FNV-1a, 32 bits of a key of 256: enough to tell the few users of one browser apart
    for (const letter of this.key) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193) >>> 0;
    return hash.toString(16).padStart(8, "0");
  }

  /** The subprotocols of a WebSocket: the only place where a browser lets a page put a key. */
  get protocols() {
    return this.key === null ? [] : ["samovar", `openai-insecure-api-key.${this.key}`];
  }

  keep(key, { lasting }) {
    this.forget();
    (lasting ? this.#lasting : this.#passing).setItem(KEY, key);
  }

  forget() {
    this.#lasting.removeItem(KEY);
    this.#passing.removeItem(KEY);
  }
}
