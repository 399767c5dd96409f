/** The instructions that the user has saved in this browser, by name. */

const PREFIX = "samovar.instructions.";
const MOST = 100;
const NAME_CHARACTERS = 40;

/** Returns a name for instructions: the beginning of their first line. */
function nameOf(words) {
  const letters = Array.from(words.trim().split("\n", 1)[0]);
  return letters.length > NAME_CHARACTERS ? `${letters.slice(0, NAME_CHARACTERS).join("").trimEnd()}…` : letters.join("");
}

export class SavedInstructions {
  #storage;
  #key;

  /** @param {string} scope of the user: instructions of other users of this browser are not shown */
  constructor(storage, scope) {
    this.#storage = storage;
    this.#key = PREFIX + scope;
  }

  /** Returns all texts by their names, the newest first. */
  get all() {
    try {
      const entries = JSON.parse(this.#storage.getItem(this.#key));
      return new Map(entries.filter((entry) => entry.length === 2 && entry.every((part) => typeof part === "string")));
    } catch {
      return new Map(); // nothing is stored, or not by this page
    }
  }

  /** Saves a text; returns whether the browser had room for it. */
  add(words) {
    const others = [...this.all].filter(([name]) => name !== nameOf(words));
    return this.#store([[nameOf(words), words.trim()], ...others].slice(0, MOST));
  }

  remove(name) {
    this.#store([...this.all].filter(([other]) => other !== name));
  }

  #store(entries) {
    try {
      this.#storage.setItem(this.#key, JSON.stringify(entries));
      return true;
    } catch {
      return false;
    }
  }
}
