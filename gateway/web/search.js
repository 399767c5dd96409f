/** The search in titles and texts of the user's conversations, at the gateway; results are shown as they come. */

import { text } from "./i18n.js";
import { isComposing } from "./ui.js";

// Pause in typing after which a search begins.
const PAUSE_MS = 200;
const MAX_RESULTS = 100;

export class Search {
  #catalogue;
  #field;
  #list;
  #results;
  #acts;
  #number = 0; // of the search whose results are shown
  #timer = 0;

  /**
   * @param {object} catalogue of texts
   * @param {HTMLInputElement} field
   * @param {HTMLElement} list the conversations, shown while nothing is searched
   * @param {HTMLElement} results
   * @param {object} acts
   * @param {(words: string, after: string|null) => Promise<{status: number, body: object}>} acts.search
   * @param {(id: string, response: string|null) => void} acts.open opens a conversation at the turn of this response
   */
  constructor(catalogue, field, list, results, acts) {
    this.#catalogue = catalogue;
    this.#field = field;
    this.#list = list;
    this.#results = results;
    this.#acts = acts;
    field.addEventListener("input", (event) => event.isComposing || this.#changed());
    field.addEventListener("compositionend", () => this.#changed());
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || isComposing(event) || field.value === "") return;
      event.stopPropagation();
      event.preventDefault();
      field.value = "";
      this.#changed();
    });
  }

  #changed() {
    clearTimeout(this.#timer);
    const number = ++this.#number;
    const words = this.#field.value.trim();
    this.#list.hidden = words !== "";
    this.#results.hidden = words === "";
    if (words === "") return this.#results.replaceChildren();
    this.#timer = setTimeout(() => this.#search(words, number), PAUSE_MS);
  }

  async #search(words, number) {
    const list = document.createElement("ul");
    const state = document.createElement("p");
    state.className = "shelf-nothing";
    state.setAttribute("role", "status");
    state.textContent = text(this.#catalogue, "searching");
    this.#results.replaceChildren(list, state);
    let after = null;
    do {
      const { status, body } = await this.#acts.search(words, after);
      if (number !== this.#number) return; // the user has typed on
      if (status !== 200) return void (state.textContent = text(this.#catalogue, "searchFailed"));
      list.append(...body.data.map((found) => this.#result(found)));
      after = body.has_more && list.childElementCount < MAX_RESULTS ? body.last_id : null;
    } while (after !== null);
    state.textContent = list.childElementCount === 0 ? text(this.#catalogue, "nothingFound") : "";
  }

  #result({ conversation, matches }) {
    const result = document.createElement("li");
    result.className = "found";
    result.dataset.testid = "found";
    const title = conversation.metadata.title || text(this.#catalogue, "untitled");
    result.append(this.#button("found-title", [title], () => this.#acts.open(conversation.id, null)));
    for (const { before, match, after, response_id: response } of matches) {
      if (response === null) continue; // the title is shown anyway
      const mark = document.createElement("mark");
      mark.textContent = match;
      const passage = [before.length > 0 ? `…${shortened(before)}` : "", mark, after];
      result.append(this.#button("found-passage", passage, () => this.#acts.open(conversation.id, response)));
    }
    return result;
  }

  #button(name, content, open) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = name;
    button.dir = "auto";
    button.append(...content);
    button.addEventListener("click", open);
    return button;
  }
}

/** Returns the end of the text before a match, so that the match is in view. */
function shortened(before) {
  return before.replace(/\s+/g, " ").slice(-24);
}
