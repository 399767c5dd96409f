/** HTTP requests of the page to the gateway. The API key is sent in a header, never in a URL. */

/** @param {string} path relative to the page */
function address(path) {
  return new URL(path, document.baseURI);
}

export class Gateway {
  #key;

  /** @param {() => string|null} key returns the API key of the current user */
  constructor(key) {
    this.#key = key;
  }

  /** Returns the settings for the page; {} if the gateway does not respond. */
  async page() {
    const answer = await this.#get("page.json");
    return answer?.ok ? answer.json() : {};
  }

  /** Returns the served model, or null. */
  async model() {
    const answer = await this.#get("v1/models");
    return answer?.ok ? ((await answer.json()).data[0] ?? null) : null;
  }

  /** Returns whether the gateway accepts this key; null if it did not respond. */
  async accepts(key) {
    const answer = await this.#get("v1/models", key);
    if (answer === null || answer.status >= 500) return null;
    return answer.status !== 401;
  }

  /** Deletes responses on the gateway. Failures are ignored. */
  async deleteResponses(responses) {
    // All at once: when the page closes, only requests that have started are completed.
    await Promise.all(responses.map((id) => this.#fetch(`v1/responses/${encodeURIComponent(id)}`, this.#key(), "DELETE")));
  }

  #get(path, key = this.#key()) {
    return this.#fetch(path, key, "GET");
  }

  async #fetch(path, key, method) {
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    try {
      return await fetch(address(path), { method, headers, cache: "no-store", keepalive: method === "DELETE" });
    } catch {
      return null; // the status of the socket shows whether the gateway is reachable
    }
  }
}
