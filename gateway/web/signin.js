/** The sign-in: asks for a key until the gateway takes one. */

import { text } from "./i18n.js";
import { couldBeKey } from "./keyring.js";

export class SignIn {
  #catalogue;
  #dialog;
  #accepts;
  #signedIn;

  /**
   * @param {object} catalogue of texts
   * @param {HTMLDialogElement} dialog
   * @param {(key: string) => Promise<boolean|null>} accepts whether the gateway takes a key; null when it is away
   * @param {(key: string, options: {lasting: boolean}) => void} signedIn called with a key that was taken
   */
  constructor(catalogue, dialog, accepts, signedIn) {
    this.#catalogue = catalogue;
    this.#dialog = dialog;
    this.#accepts = accepts;
    this.#signedIn = signedIn;
    dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // without a key there is nothing to go back to
  }

  /** Asks; `why` is the key of a text, for one who was signed in before. */
  open(why = "") {
    this.#say(why);
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  close() {
    this.#dialog.close();
  }

  async #submit() {
    const form = this.#dialog.querySelector("form");
    const [field, lasting, button] = ["key", "lasting", "enter"].map((name) => form.elements[name]);
    const key = field.value.trim();
    if (!couldBeKey(key)) return this.#say("keyMalformed");
    button.disabled = true;
    const accepted = await this.#accepts(key);
    button.disabled = false;
    if (accepted === null) return this.#say("keyUnasked");
    if (!accepted) {
      field.select();
      return this.#say("keyRefused");
    }
    field.value = "";
    this.close();
    this.#signedIn(key, { lasting: lasting.checked });
  }

  #say(key) {
    this.#dialog.querySelector(".sign-in-error").textContent = key && text(this.#catalogue, key);
  }
}
