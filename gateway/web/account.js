/** What the pages about users share: the language, requests with the key of the reader, and a form that asks for one. */

import { accountTexts } from "./account_texts.js";
import { catalogueFor, text, translate } from "./i18n.js";
import { KEY, Keyring, couldBeKey } from "./keyring.js";
import { storageOf } from "./library.js";
import { preferredLanguage } from "./preferences.js";

const shared = await catalogueFor(preferredLanguage());
export const catalogue = { ...shared, ...accountTexts[shared.tag] };

export const find = (id) => document.getElementById(id);
export const say = (key, values) => text(catalogue, key, values);

const number = new Intl.NumberFormat(catalogue.tag, { maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(catalogue.tag, { dateStyle: "medium", timeStyle: "short" });
const clock = new Intl.DateTimeFormat(catalogue.tag, { hour: "2-digit", minute: "2-digit" });

export const plain = (value) => (value === null ? "–" : number.format(value));
export const bytes = (value) => (value < 2 ** 20 ? `${number.format(value / 2 ** 10)} KiB` : `${number.format(value / 2 ** 20)} MiB`);
export const requests = (count) => say("requestsCount", { count, number: plain(count) });
export const dateOf = (seconds, otherwise = "–") => (seconds === null ? otherwise : moment.format(seconds * 1000));
export const timeOf = (seconds) => clock.format(seconds * 1000);

/** Returns a new element. */
export function element(name, className = "", words = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = words;
  return made;
}

/** Shows tiles: `[key, name, value, more]`. */
export function showTiles(tiles) {
  find("tiles").replaceChildren(
    ...tiles.map(([key, name, value, more]) => {
      const tile = element("div", "tile");
      tile.dataset.tile = key;
      tile.append(element("p", "tile-name", name), element("p", "tile-value", value), element("p", "tile-more", more));
      return tile;
    }),
  );
}

/** Puts the page into the reader's language. */
export function translatePage(title) {
  document.documentElement.lang = catalogue.tag;
  translate(document, catalogue);
  document.title = `Samovar · ${say(title)}`;
}

/** The reader's access to the gateway. The key is sent in a header, so that no other site can use it. */
export class Account {
  #window = storageOf("sessionStorage");
  #keyring = new Keyring(storageOf("localStorage"), this.#window);
  #opened;

  /** @param {() => Promise<void>} opened called when there is a new key to try */
  constructor(opened) {
    this.#opened = opened;
    find("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#enter();
    });
    find("other-key").addEventListener("click", () => this.askForKey("keyNeeded"));
    addEventListener("storage", ({ key }) => {
      if (key === KEY || key === null) location.reload(); // the reader has signed in or out in another window
    });
  }

  /** Sends a request; returns `{ok, status, body}`, of which `status` is 0 if the gateway did not respond. */
  async request(method, path, body) {
    const headers = this.#keyring.key === null ? {} : { Authorization: `Bearer ${this.#keyring.key}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    try {
      const address = new URL(path, document.baseURI);
      const answer = await fetch(address, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
      const isJson = answer.headers.get("Content-Type")?.startsWith("application/json");
      return { ok: answer.ok, status: answer.status, body: isJson ? await answer.json() : await answer.blob() };
    } catch {
      return { ok: false, status: 0, body: null };
    }
  }

  /** Returns the body of a page's first request; if it is refused, shows why and returns null. */
  async open(path) {
    const answer = await this.request("GET", path);
    if (answer.ok) {
      this.#show("board");
      return answer.body;
    }
    if (answer.status === 401) this.askForKey(this.#keyring.key === null ? "keyNeeded" : "keyRefused");
    else this.#refuse(this.#reason(answer));
    return null;
  }

  /** Asks for a key; `why` is the name of a text. */
  askForKey(why) {
    find("key-reason").textContent = say(why);
    this.#show("key-form");
    find("key").focus();
  }

  /** Continues with a new key, after the reader's own was replaced, wherever the old one is stored. */
  replaceKey(key) {
    if (this.#window.getItem(KEY) === null) this.#keyring.store(key, { lasting: true });
    else this.#window.setItem(KEY, key);
  }

  #reason({ status, body }) {
    if (status === 0) return say("unreachable");
    if (status === 403) return say(body?.error?.code === "invalid_api_key" && this.#keyring.key !== null ? "notAdmin" : "noUsers");
    return say("failed", { message: body?.error?.message ?? status });
  }

  #refuse(words) {
    find("refusal-text").textContent = words;
    this.#show("refusal");
  }

  #show(shown) {
    for (const id of ["key-form", "refusal", "board"]) find(id).hidden = id !== shown;
  }

  async #enter() {
    const key = find("key").value.trim();
    if (!couldBeKey(key)) return this.askForKey("keyMalformed");
    this.#window.setItem(KEY, key); // of this window only: an admin's key does not replace the one of the chat page
    find("key").value = "";
    await this.#opened();
  }
}
