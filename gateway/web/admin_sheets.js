/** The dialogs of the administration page: a user's limits, a confirmation, and a new key. */

import { find } from "./account.js";
import { copyText } from "./clipboard.js";

const FIELDS = ["tokens_per_day", "tokens_per_minute", "concurrency", "weight"];

/**
 * @callback Send
 * @param {HTMLFormControlsCollection} fields
 * @returns {Promise<string>} why the gateway refused, in words; "" if it did not
 */

export class Sheets {
  #send = async () => "";

  constructor() {
    for (const id of ["user", "confirm"]) {
      const [dialog, form] = [find(id), find(id).querySelector("form")];
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        this.#submit(dialog, form);
      });
      form.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    }
    find("copy-key").addEventListener("click", () => copyText(find("new-key-text").value));
    find("new-key").addEventListener("close", () => (find("new-key-text").value = "")); // it does not stay in the page
  }

  get isOpen() {
    return document.querySelector("dialog[open]") !== null;
  }

  /**
   * Opens the form of a user's limits.
   *
   * @param {object} limits that the form shows; null stands for none
   * @param {boolean} isNew whether to ask for a name, too
   * @param {Send} send
   */
  edit(title, label, limits, isNew, send) {
    const form = find("user").querySelector("form");
    form.reset();
    find("user-title").textContent = title;
    form.querySelector(".only-new").hidden = !isNew;
    form.elements.name.required = isNew;
    for (const name of FIELDS) form.elements[name].value = limits[name] ?? "";
    this.#open("user", label, send);
  }

  /** Asks whether to go on; if `name` is not empty, it has to be typed. @param {Send} send */
  confirm(question, label, name, send) {
    const form = find("confirm").querySelector("form");
    form.reset();
    find("confirm-text").textContent = question;
    form.elements.name.hidden = name === "";
    form.elements.name.required = name !== "";
    form.elements.name.pattern = name.replace(/[.+]/g, "\\$&");
    this.#open("confirm", label, send);
  }

  /** Shows a new key, once. */
  showKey(title, key) {
    find("new-key-title").textContent = title;
    find("new-key-text").value = key;
    find("new-key").showModal();
  }

  #open(id, label, send) {
    this.#send = send;
    const dialog = find(id);
    dialog.querySelector(".sheet-error").textContent = "";
    dialog.querySelector('[type="submit"]').textContent = label;
    dialog.showModal();
  }

  async #submit(dialog, form) {
    const button = form.querySelector('[type="submit"]');
    button.disabled = true;
    const refusal = await this.#send(form.elements);
    button.disabled = false;
    dialog.querySelector(".sheet-error").textContent = refusal;
    if (refusal === "") dialog.close();
  }
}
