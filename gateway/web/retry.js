/** The pause before the next attempt to connect: a countdown, and a button that ends it. */

import { text } from "./i18n.js";

// Shorter pauses pass before a countdown can be read.
const MIN_SHOWN_MS = 1_500;
const SECOND_MS = 1_000;

export class Retry {
  #catalogue;
  #element;
  #timer = 0;

  /**
   * @param {object} catalogue of texts
   * @param {HTMLElement} element with a countdown and a button
   * @param {() => void} now ends the pause
   */
  constructor(catalogue, element, now) {
    this.#catalogue = catalogue;
    this.#element = element;
    element.querySelector("button").addEventListener("click", now);
  }

  /** Shows a pause of so many milliseconds; 0 shows none. */
  show(pause) {
    clearInterval(this.#timer);
    this.#element.hidden = pause < MIN_SHOWN_MS;
    if (this.#element.hidden) return;
    const end = performance.now() + pause;
    const count = () => {
      const number = Math.max(0, Math.ceil((end - performance.now()) / SECOND_MS));
      this.#element.querySelector("span").textContent = text(this.#catalogue, "seconds", { number });
    };
    count();
    this.#timer = setInterval(count, SECOND_MS);
  }
}
