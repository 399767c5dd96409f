/** The sign-in dialog: asks for an API key until the gateway accepts one. */

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
   * @param {(key: string) => Promise<boolean|null>} accepts returns whether the gateway accepts a key; null if it does not respond
   * @param {(key: string, options: {lasting: boolean}) => void} signedIn called with the accepted key
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
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // without a key, the page cannot be used
  }

  /** Opens the dialog; `why` is the key of the text that explains why a user was signed out. */
  open(why = "") {
    this.#showError(why);
    if (this.#dialog.open) return;
    this.#dialog.showModal();
    this.#dialog.querySelector('[name="key"]').focus(); // a browser would focus the hidden field for password managers
  }

  close() {
    this.#dialog.close();
  }

  async #submit() {
    const form = this.#dialog.querySelector("form");
    const [field, lasting, button] = ["key", "lasting", "enter"].map((name) => form.elements[name]);
    const key = field.value.trim();
    if (!couldBeKey(key)) return this.#showError("keyMalformed");
    button.disabled = true;
    const accepted = await this.#accepts(key);
    button.disabled = false;
    if (accepted === null) return this.#showError("keyUnasked");
    if (!accepted) {
      field.select();
      return this.#showError("keyRefused");
    }
    field.value = "";
    this.close();
    this.#signedIn(key, { lasting: lasting.checked });
  }

  #showError(key) {
    this.#dialog.querySelector(".sign-in-error").textContent = key && text(this.#catalogue, key);
  }
}
