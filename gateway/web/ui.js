/** Small things that all parts of the page use. Text goes in as text, never as markup. */

import { copyText } from "./clipboard.js";
import { catalogues, text, translate } from "./i18n.js";

const NEAR_BOTTOM_PX = 64;
const COPIED_MS = 1_600;
const TOAST_MS = 8_000;

/** Keeps the newest text in sight, unless the reader has scrolled up to read. */
export class Follower {
  #scroller;
  #following = true;

  constructor(scroller) {
    this.#scroller = scroller;
    scroller.addEventListener("scroll", () => {
      this.#following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_BOTTOM_PX;
    });
  }

  /** To be called after the log grew. */
  grown() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  /** Goes to the end, wherever the reader was. */
  catchUp() {
    this.#following = true;
    this.grown();
  }
}

/** A word at the edge of the page, with a way back for as long as it stands there. */
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
   * @param {string} words what has happened
   * @param {string} label of the way back
   * @param {() => void} undo called when the reader takes it
   * @param {() => void} passed called when it is over, and was not taken
   */
  show(words, label, undo, passed) {
    this.hide();
    this.#undo = undo;
    this.#passed = passed;
    this.#element.querySelector("span").textContent = words;
    this.#element.querySelector("button").textContent = label;
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

/** A new element from the page's template of that name. */
export function stamp(catalogue, name) {
  const content = document.getElementById(name).content.cloneNode(true);
  translate(content, catalogue);
  return content.firstElementChild;
}

/** Makes a button copy, and say whether it did. */
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
  // The same words again would be read aloud again at every try.
  if (words.textContent !== text(catalogue, key)) words.textContent = text(catalogue, key);
  element.title = words.textContent;
}

/** Says, in both languages and the reader's own first, that the model knows no Chinese and how to get one that does. */
export function showNotice(catalogue, element, shown) {
  const own = catalogue;
  const order = [own, ...Object.values(catalogues).filter((other) => other !== own)];
  element.replaceChildren(...order.map(noticeParagraph));
  element.hidden = !shown;
}

function noticeParagraph(catalogue) {
  const paragraph = document.createElement("p");
  paragraph.lang = catalogue.tag;
  text(catalogue, "notice")
    .split("`")
    .forEach((piece, index) => {
      if (index % 2 === 0) return paragraph.append(piece);
      const code = document.createElement("code");
      code.textContent = piece;
      paragraph.append(code);
    });
  return paragraph;
}

/**
 * Whether a key belongs to an input method that is composing, and so is not ours: its Enter takes a candidate, its
 * Escape drops one. Safari reports the Enter that ends a composition after `compositionend`, told only by code 229.
 */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** A button that hides takes the focus with it. Not by touch: there the focus would bring up the keyboard. */
export function focusByKeyboard(element) {
  if (matchMedia("(pointer: fine)").matches) element.focus();
}

/** Makes a textarea as high as its text, up to the limit that its style sets. */
export function fitHeight(textarea) {
  textarea.style.height = "auto";
  textarea.style.height = `${textarea.scrollHeight}px`;
}
