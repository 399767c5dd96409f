/** What the page asks the gateway over plain HTTP, beside the socket. A key goes into a header, never into an address. */

/** @param {string} path beside the page */
function address(path) {
  return new URL(path, document.baseURI);
}

export class Gateway {
  #key;

  /** @param {() => string|null} key of whoever is signed in */
  constructor(key) {
    this.#key = key;
  }

  /** What the operator lets the page do; nothing special when the gateway does not say. */
  async page() {
    const answer = await this.#get("page.json");
    return answer?.ok ? answer.json() : {};
  }

  /** The model that is served, or null. */
  async model() {
    const answer = await this.#get("v1/models");
    return answer?.ok ? ((await answer.json()).data[0] ?? null) : null;
  }

  /** Whether this key is let in: true, false, or null when the gateway did not answer. */
  async accepts(key) {
    const answer = await this.#get("v1/models", key);
    if (answer === null || answer.status >= 500) return null;
    return answer.status !== 401;
  }

  /** Has the gateway forget responses; it is enough to have asked. */
  async forget(responses) {
    for (const id of responses) await this.#fetch(`v1/responses/${encodeURIComponent(id)}`, this.#key(), "DELETE");
  }

  #get(path, key = this.#key()) {
    return this.#fetch(path, key, "GET");
  }

  async #fetch(path, key, method) {
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    try {
      return await fetch(address(path), { method, headers, cache: "no-store", keepalive: method === "DELETE" });
    } catch {
      return null; // the socket tells the reader whether the gateway is there
    }
  }
}
