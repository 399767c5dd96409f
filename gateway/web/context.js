/** How full the model's context is, and where the conversation begins for the model: earlier turns did not fit. */

import { text } from "./i18n.js";

// Share of the context from which the display is emphasized.
const NEARLY_FULL = 0.8;

/** Whether a turn is part of the history of later ones. */
function isAnswered(turn) {
  return turn.state === "done" || turn.answer !== "";
}

/** Returns the tokens of a path of turns as of its last measured answer; null if there is none. */
export function tokensOf(path) {
  const usage = path.findLast((turn) => turn.usage)?.usage;
  return usage ? usage.input_tokens + usage.output_tokens : null;
}

/** Returns the first turn that was in the prompt of the last answer; null if all of them were. */
export function firstInPrompt(path) {
  const last = path.findLastIndex((turn) => turn.promptTurns !== undefined);
  if (last < 0) return null;
  const shown = path.slice(0, last + 1).filter((turn, index) => index === last || isAnswered(turn));
  const dropped = shown.length - path[last].promptTurns;
  return dropped > 0 && dropped < shown.length ? shown[dropped] : null;
}

export class ContextMeter {
  /** Tokens that the model's context holds; null if they are unknown. */
  limit = null;
  #catalogue;
  #element;
  #log;
  #line;
  #first = null; // the turn above which the line is drawn

  /** @param {object} catalogue of texts @param {HTMLElement} element that shows the share @param {HTMLElement} log */
  constructor(catalogue, element, log) {
    this.#catalogue = catalogue;
    this.#element = element;
    this.#log = log;
    this.#line = document.createElement("p");
    this.#line.className = "context-line";
    this.#line.dataset.testid = "context-line";
    this.#line.textContent = text(catalogue, "contextLine");
    // Earlier turns are drawn later, and all are redrawn when another version is chosen.
    new MutationObserver(() => this.#place()).observe(log, { childList: true });
  }

  /** Shows the state of the displayed turns. */
  show(path) {
    const tokens = tokensOf(path);
    this.#element.hidden = tokens === null || this.limit === null;
    this.#first = firstInPrompt(path);
    this.#place();
    if (this.#element.hidden) return;
    const format = (value, options) => new Intl.NumberFormat(this.#catalogue.tag, options).format(value);
    const share = Math.min(1, tokens / this.limit);
    this.#element.dataset.nearlyFull = String(share >= NEARLY_FULL);
    this.#element.textContent = text(this.#catalogue, "contextShare", {
      share: format(share, { style: "percent" }),
      tokens: format(tokens),
      limit: format(this.limit),
    });
  }

  #place() {
    const first = this.#first && this.#log.querySelector(`[data-turn="${this.#first.id}"]`);
    if (!first) return this.#line.remove();
    if (first.previousElementSibling !== this.#line) first.before(this.#line);
  }
}
