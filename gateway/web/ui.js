/** What is on the page: messages, notice, status, and the composer's manners. Text goes in as text, never as markup. */

import { catalogues, errorText, text, translate } from "./i18n.js";

// Asking again helps against these; a message that is too long stays too long.
const PASSING = new Set([
  "connection_lost",
  "engine_unavailable",
  "queue_full",
  "queue_timeout",
  "rate_limit_exceeded",
  "server_error",
  "store_unavailable",
]);

const NEAR_BOTTOM_PX = 64;

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

/** A new element from the page's template of that name. */
function stamp(catalogue, name) {
  const content = document.getElementById(name).content.cloneNode(true);
  translate(content, catalogue);
  return content.firstElementChild;
}

function makeMessage(catalogue, role, state) {
  const message = stamp(catalogue, "message");
  message.dataset.role = role;
  message.dataset.state = state;
  message.querySelector(".message-who").textContent = text(catalogue, role === "user" ? "you" : "assistant");
  return message;
}

/** The reader's own message, complete from the start. */
export function questionElement(catalogue, words) {
  const message = makeMessage(catalogue, "user", "done");
  message.querySelector(".message-text").textContent = words;
  return message;
}

/** One answer as it waits, arrives and ends: the view that conversation.js speaks to. */
export class AnswerView {
  #catalogue;
  #grown;
  #again;
  #words = document.createTextNode("");
  #wait;

  /**
   * @param {object} catalogue of texts
   * @param {() => void} grown called when the element may have become taller
   * @param {() => void} again called when the reader wants to ask once more
   */
  constructor(catalogue, grown, again) {
    this.#catalogue = catalogue;
    this.#grown = grown;
    this.#again = again;
    this.#wait = stamp(catalogue, "wait");
    this.element = makeMessage(catalogue, "assistant", "streaming");
    // A screen reader hears the answer once it is whole, not syllable by syllable.
    this.element.setAttribute("aria-busy", "true");
    this.element.querySelector(".message-text").append(this.#words);
    this.element.append(this.#wait);
    this.asked();
  }

  asked() {
    this.#waitFor("thinking");
  }

  unsent() {
    this.#waitFor("unsent");
  }

  stopping() {
    this.#waitFor("stopping");
  }

  queued(position, wait) {
    if (position === null) return;
    this.#waitFor("queued", { position, seconds: wait === null ? null : Math.max(1, Math.ceil(wait)) });
  }

  append(delta) {
    this.#wait.remove();
    this.#words.appendData(delta);
    this.#grown();
  }

  finish({ state, usage = null, rate = null, reason = null, error = {} }) {
    this.element.dataset.state = state;
    this.element.removeAttribute("aria-busy");
    this.#wait.remove();
    if (this.#words.length === 0) this.element.querySelector(".message-text").remove();
    if (state === "failed") this.#showError(error);
    this.#showStats(state, usage, rate, reason);
    this.#grown();
  }

  /** No asking again once the conversation has gone on. */
  settle() {
    this.element.querySelector(".message-again")?.remove();
  }

  #waitFor(key, values) {
    this.#wait.querySelector(".message-wait-text").textContent = text(this.#catalogue, key, values);
    this.#grown();
  }

  #showError({ code = null, message = "", retry_after: seconds = null }) {
    const what = errorText(this.#catalogue, code);
    const whole = seconds === null ? what : text(this.#catalogue, "withWait", { what, seconds: Math.ceil(seconds) });
    const box = stamp(this.#catalogue, "error");
    box.dataset.code = code ?? "";
    box.querySelector(".message-error-what").textContent = whole;
    const said = [message, code && message ? `(${code})` : ""].filter(Boolean).join(" ");
    if (said === "") box.querySelector(".message-error-said").remove();
    else box.querySelector(".message-error-said").textContent = said;
    if (PASSING.has(code)) box.append(this.#againButton());
    this.element.append(box);
  }

  #againButton() {
    const button = stamp(this.#catalogue, "again");
    button.addEventListener("click", () => this.#again());
    return button;
  }

  #showStats(state, usage, rate, reason) {
    const number = new Intl.NumberFormat(this.#catalogue.tag, { maximumFractionDigits: 1 });
    const say = (key, values) => text(this.#catalogue, key, values);
    const stats = stamp(this.#catalogue, "stats");
    const facts = [];
    if (state === "cancelled") facts.push(say("cancelled"));
    if (reason !== null) facts.push(reason === "max_output_tokens" ? say("cutAtLimit") : say("incomplete", { reason }));
    if (usage !== null) {
      const cached = usage.input_tokens_details?.cached_tokens ?? 0;
      facts.push(say("tokens", { count: usage.output_tokens, number: number.format(usage.output_tokens) }));
      if (rate !== null) facts.push(say("rate", { number: number.format(rate) }));
      facts.push(say("cached", { cached: number.format(cached), prompt: number.format(usage.input_tokens) }));
      Object.assign(stats.dataset, { output: usage.output_tokens, prompt: usage.input_tokens, cached });
    }
    for (const fact of facts) {
      const span = document.createElement("span");
      span.textContent = fact;
      stats.append(span, " ");
    }
    if (facts.length > 0) this.element.append(stats);
  }
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

/** Makes a textarea as high as its text, up to the limit that its style sets. */
export function fitHeight(textarea) {
  textarea.style.height = "auto";
  textarea.style.height = `${textarea.scrollHeight}px`;
}
