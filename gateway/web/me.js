/** The reader's entry below the list of conversations: name, what is left of the daily allowance, usage, administration. */

import { text } from "./i18n.js";

const AFTER_MS = 500; // after an answer: the gateway counts its tokens when it has ended

export class Me {
  #catalogue;
  #element;
  #key;
  #timer = 0;

  /** @param {HTMLElement} element @param {() => string|null} key returns the reader's API key */
  constructor(catalogue, element, key) {
    this.#catalogue = catalogue;
    this.#element = element;
    this.#key = key;
  }

  /** Reads the account soon: several calls lead to one request. */
  refresh() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#read(), AFTER_MS);
  }

  async #read() {
    const key = this.#key();
    const account = key === null ? null : await load(key);
    this.#element.hidden = account === null;
    if (account === null) return;
    const { name, admin, tokens_left_today: left } = account;
    const number = new Intl.NumberFormat(this.#catalogue.tag).format(left ?? 0);
    this.#element.querySelector(".me-name").textContent = name;
    this.#element.querySelector(".me-left").textContent = text(this.#catalogue, "tokensLeft", { number });
    this.#element.querySelector(".me-left").hidden = left === null;
    this.#element.querySelector(".me-admin").hidden = !admin;
  }
}

/** Returns the account of the user with this key; null if the gateway has none or does not respond. */
async function load(key) {
  try {
    const headers = { Authorization: `Bearer ${key}` };
    const answer = await fetch(new URL("v1/me", document.baseURI), { headers, cache: "no-store" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}
