/** The field for a message, and the buttons next to it. */

import { text } from "./i18n.js";
import { fitHeight, focusByKeyboard, isComposing } from "./ui.js";

/**
 * @typedef {object} Acts
 * @property {() => void} send sends the message, or queues it while an answer is running
 * @property {() => void} stop stops the running answer
 * @property {() => void} editLast opens the editor of the last question
 * @property {() => void} changed called when the user has changed the message
 */

export class Composer {
  #catalogue;
  #field;
  #send;
  #stop;
  #isBusy = false;
  #isHandledEnter = false; // whether the key that is down is an Enter that has sent the message

  /** @param {HTMLFormElement} form @param {Acts} acts */
  constructor(catalogue, form, acts) {
    this.#catalogue = catalogue;
    this.#field = form.querySelector("textarea");
    this.#send = form.querySelector('[type="submit"]');
    this.#stop = form.querySelector(".stop");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      acts.send();
      this.focus();
    });
    this.#stop.addEventListener("click", () => {
      acts.stop();
      this.focus();
    });
    this.#field.addEventListener("input", () => {
      this.#fit();
      acts.changed();
    });
    this.#field.addEventListener("keydown", (event) => this.#pressed(event, acts));
    this.#field.addEventListener("keyup", () => (this.#isHandledEnter = false));
    // Chrome on macOS lets an input method insert the line break of an Enter whose key event was handled.
    this.#field.addEventListener("beforeinput", (event) => {
      const isLineBreak = ["insertLineBreak", "insertParagraph"].includes(event.inputType) || event.data === "\n";
      if (this.#isHandledEnter && isLineBreak) event.preventDefault();
    });
  }

  /** The message as it is. */
  get text() {
    return this.#field.value;
  }

  /** The message without white space around it; "" if there is nothing to send. */
  get words() {
    return this.#field.value.trim();
  }

  /** Replaces the message. */
  write(words) {
    this.#field.value = words;
    this.#fit();
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
    this.#send.disabled = this.words === "";
    this.#send.hidden = !this.#stop.hidden && this.words === "";
  }

  #pressed(event, acts) {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.#isHandledEnter = true;
      acts.send();
    } else if (event.key === "ArrowUp" && this.#field.value === "" && !this.#isBusy) {
      event.preventDefault();
      acts.editLast();
    }
  }
}
