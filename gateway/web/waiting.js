/** The line that says what an answer is waiting for, and for how long. */

import { text } from "./i18n.js";

const SECOND_MS = 1_000;
// Shorter waits are not counted.
const MIN_SECONDS = 3;

export class Waiting {
  #catalogue;
  #element;
  #isLoading;
  #shown = null; // {phase, turn}
  #timer = 0;

  /**
   * @param {object} catalogue of texts
   * @param {HTMLElement} element
   * @param {() => boolean} isLoading returns whether the model is not loaded yet
   */
  constructor(catalogue, element, isLoading) {
    this.#catalogue = catalogue;
    this.#element = element;
    this.#isLoading = isLoading;
  }

  /** Shows the phase of a turn's answer, and counts the seconds since its question. */
  show(phase, turn) {
    this.#shown = { phase, turn };
    this.#element.hidden = false;
    this.#draw();
    this.#timer ||= setInterval(() => this.#draw(), SECOND_MS);
  }

  hide() {
    clearInterval(this.#timer);
    this.#timer = 0;
    this.#element.hidden = true;
  }

  #draw() {
    if (!this.#element.isConnected && this.#timer !== 0) return this.hide(); // its conversation was left
    const { phase, turn } = this.#shown;
    const what = this.#describe(phase, turn.answer !== "");
    const number = Math.floor((Date.now() - turn.at) / SECOND_MS);
    const words = number < MIN_SECONDS ? what : text(this.#catalogue, "waitingFor", { what, number });
    this.#element.querySelector(".message-wait-text").textContent = words;
  }

  #describe(phase, hasStarted) {
    const say = (key, values) => text(this.#catalogue, key, values);
    switch (phase.kind) {
      case "unsent":
        return say(hasStarted ? "reconnecting" : "unsent");
      case "queued":
        return say("queued", { position: phase.position, seconds: rounded(phase.seconds) });
      case "reading":
        if (phase.share !== null) return say("reading", { percent: Math.floor(phase.share * 100) });
      // fall through
      case "asked":
      case "restarted":
        return say(this.#isLoading() ? "loadingModel" : "thinking");
      default: // `crowded` (with `count`), `retrying`, `stopping`, `elsewhere`
        return say(phase.kind, phase);
    }
  }
}

/** Returns whole seconds, at least one; null if they are unknown. */
function rounded(seconds) {
  return seconds === null || seconds === undefined ? null : Math.max(1, Math.ceil(seconds));
}
