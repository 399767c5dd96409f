/** Texts of office files, and numbers of tokens, which the gateway finds out. */

const TYPES = {
  pdf: "application/pdf",
  docx: "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
};
export const MAX_DOCUMENT = 10 * 1024 * 1024; // bytes, at the gateway
const REMEMBERED = 50; // texts whose numbers of tokens are remembered

/** Returns the content type of a file whose text the gateway can read; undefined for other files. */
export function documentType({ name, type }) {
  return Object.values(TYPES).find((known) => known === type) ?? TYPES[/\.(pdf|docx)$/i.exec(name)?.[1].toLowerCase()];
}

export class Documents {
  #key;
  #counts = new Map();

  /** @param {() => string|null} key returns the API key of the current user */
  constructor(key) {
    this.#key = key;
  }

  /** Returns `{text, truncated}` of a file; null if it has no text, or if the gateway does not respond. */
  async read(file) {
    return this.#post("v1/documents/text", file, documentType(file));
  }

  /** Returns the number of tokens of a text; null if it is unknown. */
  async count(words) {
    if (!this.#counts.has(words)) {
      if (this.#counts.size >= REMEMBERED) this.#counts.delete(this.#counts.keys().next().value);
      const body = JSON.stringify({ content: words, parse_special: false });
      const counting = this.#post("v1/tokenize", body, "application/json").then((found) => found?.tokens.length ?? null);
      this.#counts.set(words, counting);
      if ((await counting) === null) this.#counts.delete(words); // the next time, the gateway may respond
      return counting;
    }
    return this.#counts.get(words);
  }

  async #post(path, body, type) {
    const key = this.#key();
    const headers = { "Content-Type": type, ...(key !== null && { Authorization: `Bearer ${key}` }) };
    try {
      const answer = await fetch(new URL(path, document.baseURI), { method: "POST", headers, body });
      return answer.ok ? await answer.json() : null;
    } catch {
      return null;
    }
  }
}
