/** The warning that attached texts exceed the model's context, with the choice to take their beginning. */

import { text } from "./i18n.js";

// Tokens that are left for the answer and for what the chat template adds: at most, and as a share of a small context.
const REST = 1_024;
const REST_SHARE = 0.25;
const MARGIN = 0.97; // of a cut text, since tokens are not evenly distributed
const MARK = "\n[…]"; // where a text was cut

/** Returns the tokens that one message may have in a context of `limit` tokens. */
export function roomIn(limit) {
  return limit - Math.min(REST, Math.floor(limit * REST_SHARE));
}

/**
 * Returns the texts, the longest of them cut until all have at most `room` tokens.
 *
 * @param {(words: string) => Promise<number|null>} count
 */
export async function cutToFit(texts, room, count) {
  const cut = [...texts];
  for (;;) {
    const counts = await Promise.all(cut.map(count));
    const excess = counts.reduce((sum, number) => sum + number, 0) - room;
    const longest = counts.indexOf(Math.max(...counts));
    if (counts.includes(null) || excess <= 0 || cut[longest] === MARK) return cut;
    const letters = Array.from(cut[longest].replace(MARK, ""));
    const share = Math.max(0, (counts[longest] - excess) / counts[longest]) * MARGIN;
    cut[longest] = letters.slice(0, Math.floor(letters.length * share)).join("") + MARK;
  }
}

export class Fit {
  #catalogue;
  #element;
  #acts;
  #shown = 0; // number of the newest check

  /**
   * @param {object} catalogue of texts
   * @param {HTMLElement} element with a text and a button
   * @param {object} acts
   * @param {() => string[]} acts.texts returns the attached texts
   * @param {(texts: string[]) => void} acts.replace replaces them
   * @param {(words: string) => Promise<number|null>} acts.count returns the number of tokens of a text
   * @param {() => number|null} acts.limit returns the tokens that the model's context holds
   */
  constructor(catalogue, element, acts) {
    this.#catalogue = catalogue;
    this.#element = element;
    this.#acts = acts;
    element.querySelector("button").addEventListener("click", async () => {
      const texts = acts.texts();
      const cut = await cutToFit(texts, roomIn(acts.limit()), acts.count);
      if (acts.texts().join() === texts.join()) acts.replace(cut); // nothing was added or removed meanwhile
    });
  }

  /** To be called when the attached texts have changed. */
  async check() {
    const check = ++this.#shown;
    const limit = this.#acts.limit();
    const counts = await Promise.all(this.#acts.texts().map((words) => this.#acts.count(words)));
    if (check !== this.#shown) return;
    const tokens = counts.reduce((sum, number) => sum + number, 0);
    const isTooLong = limit !== null && tokens > roomIn(limit);
    this.#element.hidden = !isTooLong;
    const format = (number) => new Intl.NumberFormat(this.#catalogue.tag).format(number);
    const values = { tokens: format(tokens), room: limit === null ? "" : format(roomIn(limit)) };
    this.#element.querySelector("span").textContent = isTooLong ? text(this.#catalogue, "tooLong", values) : "";
  }
}
