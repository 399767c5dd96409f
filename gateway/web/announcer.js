/**
 * Reads a growing answer to screen readers, sentence by sentence, in a live region of its own. The log itself cannot be
 * one: its text is replaced while Markdown arrives, and opening a conversation would read all of it.
 */

import { plainText } from "./markdown.js";
import { failureOf, remarkOf } from "./outcome.js";
import { splitThoughts } from "./thoughts.js";

// Sentences that end within this time are announced together: screen readers drop announcements that come too fast.
const PAUSE_MS = 1_000;
const MAX_PARAGRAPHS = 5;
// The end of a sentence, with the white space after it, or the end of a line.
const SENTENCE_END = /[.!?…][)"'”’]*\s+|[。！？；][”’）]*|\n+/g;

export class Announcer {
  #catalogue;
  #region;
  #turn = null;
  #announced = 0; // number of characters of the answer that were announced
  #timer = 0;

  /** @param {HTMLElement} region with `aria-live="polite"` */
  constructor(catalogue, region) {
    this.#catalogue = catalogue;
    this.#region = region;
  }

  /** Follows the answer of this turn from its current end on; null follows none. */
  follow(turn) {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#region.replaceChildren();
    this.#turn = turn;
    this.#announced = turn === null ? 0 : answerOf(turn).length;
  }

  /** To be called when the answer of a turn has changed. */
  changed(turn) {
    if (turn !== this.#turn) return;
    this.#announced = Math.min(this.#announced, answerOf(turn).length); // less after a new start
    this.#timer ||= setTimeout(() => this.#announceSentences(), PAUSE_MS);
  }

  /** To be called when the answer of a turn has ended. */
  ended(turn) {
    if (turn !== this.#turn) return;
    const failure = turn.state === "failed" ? failureOf(this.#catalogue, turn.error ?? {}) : "";
    this.#announce(answerOf(turn).length);
    this.#add(failure || remarkOf(this.#catalogue, turn));
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#turn = null;
  }

  #announceSentences() {
    this.#timer = 0;
    const rest = answerOf(this.#turn).slice(this.#announced);
    const last = [...rest.matchAll(SENTENCE_END)].at(-1);
    if (last !== undefined) this.#announce(this.#announced + last.index + last[0].length);
  }

  #announce(end) {
    this.#add(plainText(answerOf(this.#turn).slice(this.#announced, end)));
    this.#announced = end;
  }

  #add(words) {
    if (words === "") return;
    const paragraph = document.createElement("p");
    paragraph.textContent = words;
    this.#region.append(paragraph);
    while (this.#region.childElementCount > MAX_PARAGRAPHS) this.#region.firstElementChild.remove();
  }
}

/** Returns the answer without the model's thoughts, which are not announced. */
function answerOf({ answer }) {
  return splitThoughts(answer).answer;
}
