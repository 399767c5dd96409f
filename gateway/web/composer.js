/** The field for a message, and the buttons next to it. */

import { Chips, LONG_CHARACTERS } from "./chips.js";
import { Fit } from "./fit.js";
import { text } from "./i18n.js";
import { fitHeight, focusByKeyboard, isComposing } from "./ui.js";

const BETWEEN = "\n\n"; // between the parts of a message

/**
 * @typedef {object} Acts
 * @property {() => void} send sends the message, or queues it while an answer is running
 * @property {() => void} stop stops the running answer
 * @property {() => void} editLast opens the editor of the last question
 * @property {() => void} changed called when the user has changed the message
 * @property {(words: string) => Promise<number|null>} count returns the number of tokens of a text
 * @property {() => number|null} limit returns the tokens that the model's context holds
 */

export class Composer {
  #catalogue;
  #field;
  #send;
  #stop;
  #chips;
  #changed;
  #isBusy = false;
  #isHandledEnter = false; // whether the key that is down is an Enter that has sent the message

  /** @param {HTMLFormElement} form @param {Acts} acts */
  constructor(catalogue, form, acts) {
    this.#catalogue = catalogue;
    this.#field = form.querySelector("textarea");
    this.#send = form.querySelector('[type="submit"]');
    this.#stop = form.querySelector(".stop");
    const changed = () => {
      this.#fit();
      acts.changed();
    };
    const fit = new Fit(catalogue, document.getElementById("too-long"), {
      texts: () => this.#chips.texts,
      replace: (texts) => {
        this.#chips.show(texts);
        changed();
      },
      count: acts.count,
      limit: acts.limit,
    });
    this.#chips = new Chips(catalogue, document.getElementById("chips"), {
      changed,
      count: acts.count,
      shown: () => fit.check(),
      opened: (words) => {
        this.#field.value = [words, this.#field.value].filter(Boolean).join(BETWEEN);
        changed();
        this.focus();
      },
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      acts.send();
      this.focus();
    });
    this.#stop.addEventListener("click", () => {
      acts.stop();
      this.focus();
    });
    this.#field.addEventListener("input", changed);
    this.#field.addEventListener("paste", (event) => {
      const words = event.clipboardData?.getData("text/plain").trim() ?? "";
      if (words.length < LONG_CHARACTERS) return;
      event.preventDefault();
      this.attach(words);
    });
    this.#changed = changed;
    this.#field.addEventListener("keydown", (event) => this.#pressed(event, acts));
    this.#field.addEventListener("keyup", () => (this.#isHandledEnter = false));
    // Chrome on macOS lets an input method insert the line break of an Enter whose key event was handled.
    this.#field.addEventListener("beforeinput", (event) => {
      const isLineBreak = ["insertLineBreak", "insertParagraph"].includes(event.inputType) || event.data === "\n";
      if (this.#isHandledEnter && isLineBreak) event.preventDefault();
    });
  }

  /** The message as it is: long texts first, so that they can be encoded while the question about them is written. */
  get text() {
    return [...this.#chips.texts, this.#field.value].filter(Boolean).join(BETWEEN);
  }

  /** The message without white space around it; "" if there is nothing to send. */
  get words() {
    return this.text.trim();
  }

  /** Replaces the message. */
  write(words) {
    const isLong = words.length >= LONG_CHARACTERS;
    this.#chips.show(isLong ? [words] : []);
    this.#field.value = isLong ? "" : words;
    this.#fit();
  }

  /** Adds a text as a chip. */
  attach(words) {
    this.#chips.show([...this.#chips.texts, words]);
    this.#changed();
    this.focus();
  }

  /** Shows whether an answer is running, whether this window can stop it, and whether it is being stopped. */
  showBusy({ isBusy, canStop, isStopping }) {
    this.#isBusy = isBusy;
    this.#stop.hidden = !canStop;
    this.#stop.disabled = isStopping;
    const label = text(this.#catalogue, isBusy ? "sendNext" : "send");
    this.#send.setAttribute("aria-label", label);
    this.#send.title = label;
    this.#showButtons();
  }

  focus() {
    focusByKeyboard(this.#field);
  }

  #fit() {
    fitHeight(this.#field);
    this.#showButtons();
  }

  #showButtons() {
    const isEmpty = this.#chips.texts.length === 0 && !/\S/.test(this.#field.value);
    this.#send.disabled = isEmpty;
    this.#send.hidden = !this.#stop.hidden && isEmpty;
  }

  #pressed(event, acts) {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.#isHandledEnter = true;
      acts.send();
    } else if (event.key === "ArrowUp" && this.text === "" && !this.#isBusy) {
      event.preventDefault();
      acts.editLast();
    }
  }
}
