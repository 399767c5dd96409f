/** The API key of the current user, stored for this window or this browser. It is never part of a URL. */

export const KEY = "samovar.key"; // name of the entry in the browser's storage
// Characters that an HTTP header and a WebSocket subprotocol can carry.
const SENDABLE = /^[\w.~-]{1,256}$/;

/** Whether a text has the form of a key. */
export function couldBeKey(text) {
  return SENDABLE.test(text);
}

export class Keyring {
  #lasting;
  #passing;

  /** @param lasting storage that persists; @param passing storage that ends with the window */
  constructor(lasting, passing) {
    this.#lasting = lasting;
    this.#passing = passing;
  }

  get key() {
    return this.#passing.getItem(KEY) ?? this.#lasting.getItem(KEY);
  }

  /** Prefix for this user's conversations in the browser's storage. The key cannot be derived from it. */
  get scope() {
    if (this.key === null) return "";
    let hash = 0x811c9dc5; // FNV-1a, 32 bits of a 256-bit key: enough to separate the few users of one browser
    for (const letter of this.key) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193) >>> 0;
    return hash.toString(16).padStart(8, "0");
  }

  /** Subprotocols of the WebSocket: browsers let a page send a key nowhere else. */
  get protocols() {
    return this.key === null ? [] : ["samovar", `openai-insecure-api-key.${this.key}`];
  }

  store(key, { lasting }) {
    this.clear();
    (lasting ? this.#lasting : this.#passing).setItem(KEY, key);
  }

  clear() {
    this.#lasting.removeItem(KEY);
    this.#passing.removeItem(KEY);
  }
}
