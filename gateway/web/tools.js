/** The menu of the open conversation: instructions, export, import. Its parts are loaded when they are needed. */

import { text } from "./i18n.js";
import { setOptions } from "./options.js";
import { SavedInstructions } from "./saved.js";

/**
 * @typedef {object} Acts
 * @property {() => object} conversation returns the open conversation
 * @property {() => Promise<object[]>} conversations returns all conversations of the user
 * @property {(conversation: object) => void} changed called when the options of a conversation have changed
 * @property {(id: string) => boolean} isDeleted returns whether a conversation was deleted
 * @property {(found: object[]) => void} imported called with the data of conversations from a file
 * @property {(words: string) => void} tell shows a message
 * @property {() => string} scope returns the prefix of the user's data in the browser's storage
 */

export class Tools {
  #offered = {};
  #catalogue;
  #storage;
  #acts;
  #dialog = null;

  /** @param {object} catalogue of texts @param {HTMLElement} menu @param {Storage} storage @param {Acts} acts */
  constructor(catalogue, menu, storage, acts) {
    this.#catalogue = catalogue;
    this.#storage = storage;
    this.#acts = acts;
    const file = menu.querySelector('input[type="file"]');
    const actions = {
      instructions: () => this.#editInstructions(),
      markdown: () => this.#exportOne("md", "text/markdown"),
      json: () => this.#exportOne("json", "application/json"),
      all: () => this.#exportAll(),
      import: () => file.click(),
    };
    menu.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (button === null) return;
      menu.hidePopover();
      actions[button.dataset.act]();
    });
    file.addEventListener("change", async () => {
      if (file.files.length > 0) await this.#import(await file.files[0].text());
      file.value = ""; // so that the same file can be chosen again
    });
  }

  /** Takes the instructions that the operator offers, by name. */
  offer(offered) {
    this.#offered = offered;
    this.#dialog?.offer(offered);
  }

  async #editInstructions() {
    const { InstructionsDialog } = await import("./instructions.js");
    this.#dialog ??= new InstructionsDialog(this.#catalogue, new SavedInstructions(this.#storage, this.#acts.scope()));
    const conversation = this.#acts.conversation();
    this.#dialog.open(conversation, this.#offered, (options) => {
      setOptions(conversation, options);
      this.#acts.changed(conversation);
    });
  }

  async #exportOne(extension, type) {
    const { download, fileName, toJson, toMarkdown } = await import("./exporting.js");
    const conversation = this.#acts.conversation();
    const words = extension === "md" ? toMarkdown(this.#catalogue, conversation) : toJson([conversation]);
    download(fileName(this.#catalogue, conversation, extension), type, words);
  }

  async #exportAll() {
    const { download, toJson } = await import("./exporting.js");
    const day = new Date().toISOString().slice(0, 10);
    download(`samovar-${day}.json`, "application/json", toJson(await this.#acts.conversations()));
  }

  async #import(words) {
    const { fromJson } = await import("./exporting.js");
    const found = fromJson(words, this.#acts.isDeleted);
    if (found === null) return this.#acts.tell(text(this.#catalogue, "importUnknown"));
    this.#acts.imported(found);
    this.#acts.tell(text(this.#catalogue, "imported", { count: found.length }));
  }
}
