/** Helpers for all parts of the page. Texts are inserted as text, never as markup. */

import { copyText } from "./clipboard.js";
import { text, translate } from "./i18n.js";

const COPIED_MS = 1_600;
const TOAST_MS = 8_000;

/** A temporary message at the edge of the page, with an undo button. */
export class Toast {
  #element;
  #timer = 0;
  #undo = () => {};
  #passed = () => {};

  constructor(element) {
    this.#element = element;
    element.querySelector("button").addEventListener("click", () => {
      this.#passed = () => {};
      this.hide();
      this.#undo();
    });
    addEventListener("pagehide", () => this.hide());
  }

  /**
   * @param {string} words message
   * @param {string} label of the undo button
   * @param {() => void} undo called when the button is clicked
   * @param {() => void} passed called when the message disappears without undo
   */
  show(words, label, undo, passed) {
    this.tell(words);
    this.#undo = undo;
    this.#passed = passed;
    this.#element.querySelector("button").textContent = label;
    this.#element.querySelector("button").hidden = false;
  }

  /** Shows a message that offers nothing; "" only hides the one before. */
  tell(words) {
    this.hide();
    if (words === "") return;
    this.#element.querySelector("span").textContent = words;
    this.#element.querySelector("button").hidden = true;
    this.#element.hidden = false;
    this.#timer = setTimeout(() => this.hide(), TOAST_MS);
  }

  hide() {
    clearTimeout(this.#timer);
    this.#element.hidden = true;
    this.#passed();
    this.#passed = () => {};
  }
}

/** Returns a new, translated element from the page's template of that name. */
export function stamp(catalogue, name) {
  const content = document.getElementById(name).content.cloneNode(true);
  translate(content, catalogue);
  return content.firstElementChild;
}

/** Makes a button copy a text and show whether that worked. */
export function copyOnClick(catalogue, button, words) {
  const icon = button.querySelector("use");
  const label = button.querySelector("span");
  const say = (key, name) => {
    icon.setAttribute("href", `#icon-${name}`);
    if (label) label.textContent = text(catalogue, key);
    else button.setAttribute("aria-label", text(catalogue, key));
    button.title = text(catalogue, key);
  };
  button.addEventListener("click", async () => {
    const copied = await copyText(words());
    say(copied ? "copied" : "notCopied", copied ? "done" : "copy");
    setTimeout(() => say("copy", "copy"), COPIED_MS);
  });
}

/** Shows the connection's state. */
export function showStatus(catalogue, element, state, wasOpen) {
  const key = state === "open" ? "connected" : wasOpen ? "reconnecting" : "connecting";
  const words = element.querySelector(".status-text");
  element.dataset.state = state === "open" ? "open" : wasOpen ? "lost" : "connecting";
  // Setting the same text again would make screen readers repeat it at every attempt.
  if (words.textContent !== text(catalogue, key)) words.textContent = text(catalogue, key);
  element.title = words.textContent;
}

// Safari reports the Enter that ends a composition this soon after `compositionend`, marked only by the key code 229.
// Chrome on macOS gives this code to every key while such an input method is active, also long after a composition.
const COMPOSITION_MS = 100;
const IN_METHOD = 229;
let composedAt = -Infinity;
document.addEventListener("compositionend", ({ timeStamp }) => (composedAt = timeStamp), true);

/**
 * Whether a key event belongs to an input method that is composing: its Enter accepts a candidate, its Escape discards
 * one.
 */
export function isComposing(event) {
  return event.isComposing || (event.keyCode === IN_METHOD && event.timeStamp - composedAt < COMPOSITION_MS);
}

/** Focuses an element, since a button that disappears loses the focus. Not on touch screens: there the keyboard would open. */
export function focusByKeyboard(element) {
  if (matchMedia("(pointer: fine)").matches) element.focus();
}

const FITS_BY_STYLE = CSS.supports("field-sizing", "content");

/** Sets the height of a textarea to that of its text, up to the limit of its style, unless the style does it. */
export function fitHeight(textarea) {
  if (FITS_BY_STYLE) return;
  textarea.style.height = "auto";
  textarea.style.height = `${textarea.scrollHeight}px`;
}
