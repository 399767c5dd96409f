/** HTTP requests of the page to the gateway. The API key is sent in a header, never in a URL. */

const CONVERSATIONS = "v1/conversations";
const PAGE = 100; // conversations per request

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

  // The conversations of the user. Each method returns the gateway's answer, `{status, body}`; `status` is 0 if there is none.

  /** Returns a page of the list, the last changed first. */
  conversations(after) {
    return this.#json("GET", `${CONVERSATIONS}?limit=${PAGE}${after === null ? "" : `&after=${after}`}`);
  }

  /** Returns a conversation with all of its turns. */
  turns(id) {
    return this.#json("GET", `${CONVERSATIONS}/${id}/turns`);
  }

  /** Returns conversations that contain a text, after the conversation `after`. */
  search(words, after) {
    const query = new URLSearchParams({ q: words, ...(after !== null && { after }) });
    return this.#json("GET", `${CONVERSATIONS}/search?${query}`);
  }

  /** Creates a conversation, unless it exists. */
  create(fields) {
    return this.#json("POST", CONVERSATIONS, fields);
  }

  /** Adds turns that were stored in the browser. */
  addTurns(id, turns) {
    return this.#json("POST", `${CONVERSATIONS}/${id}/turns`, { turns });
  }

  /** Changes metadata, draft or head. */
  update(id, fields) {
    return this.#json("POST", `${CONVERSATIONS}/${id}`, fields);
  }

  /** Deletes a conversation and its responses. */
  remove(id) {
    return this.#json("DELETE", `${CONVERSATIONS}/${id}`);
  }

  async #json(method, path, body) {
    const answer = await this.#fetch(path, this.#key(), method, body);
    try {
      return { status: answer?.status ?? 0, body: await answer?.json() };
    } catch {
      return { status: 0 }; // the connection was lost in the middle, or a proxy answered
    }
  }

  #get(path, key = this.#key()) {
    return this.#fetch(path, key, "GET");
  }

  async #fetch(path, key, method, body) {
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const options = { method, headers, cache: "no-store", keepalive: method === "DELETE" };
    try {
      return await fetch(address(path), { ...options, body: body && JSON.stringify(body) });
    } catch {
      return null; // the status of the socket shows whether the gateway is reachable
    }
  }
}
