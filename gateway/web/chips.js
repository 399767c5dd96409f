/** Long texts that were pasted into the message: shown as chips, because a field with so much text is slow to type in. */

import { text } from "./i18n.js";
import { stamp } from "./ui.js";

// Length from which a text becomes a chip.
export const LONG_CHARACTERS = 3_000;
const EXCERPT_CHARACTERS = 80;

export class Chips {
  #catalogue;
  #list;
  #acts;
  #texts = [];

  /**
   * @param {object} catalogue of texts
   * @param {HTMLElement} list element that shows the chips
   * @param {object} acts
   * @param {() => void} acts.changed called when the user has removed a chip
   * @param {(words: string) => void} acts.opened called when the user wants to edit the text of a chip
   * @param {(words: string) => Promise<number|null>} acts.count returns the number of tokens of a text
   * @param {() => void} acts.shown called when other chips are shown
   */
  constructor(catalogue, list, acts) {
    this.#catalogue = catalogue;
    this.#list = list;
    this.#acts = acts;
  }

  get texts() {
    return this.#texts;
  }

  /** Replaces all chips by those of these texts. */
  show(texts) {
    this.#texts = [...texts];
    this.#list.replaceChildren(...this.#texts.map((words) => this.#element(words)));
    this.#list.hidden = this.#texts.length === 0;
    this.#acts.shown();
  }

  /** Shows the number of tokens instead of the number of characters, as soon as it is known. */
  async #showTokens(element, words) {
    const count = await this.#acts.count(words);
    if (count === null) return;
    const number = new Intl.NumberFormat(this.#catalogue.tag).format(count);
    element.querySelector(".chip-size").textContent = text(this.#catalogue, "tokens", { count, number });
  }

  #element(words) {
    const element = stamp(this.#catalogue, "chip");
    const number = new Intl.NumberFormat(this.#catalogue.tag).format(words.length);
    element.querySelector(".chip-excerpt").textContent = words.slice(0, EXCERPT_CHARACTERS);
    element.querySelector(".chip-size").textContent = text(this.#catalogue, "characters", { number });
    this.#showTokens(element, words);
    const remove = () => this.show(this.#texts.filter((other) => other !== words));
    element.querySelector('[data-tool="open"]').addEventListener("click", () => {
      remove();
      this.#acts.opened(words);
    });
    element.querySelector('[data-tool="remove"]').addEventListener("click", () => {
      remove();
      this.#acts.changed();
    });
    return element;
  }
}
