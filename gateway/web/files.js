/** Files that are chosen, dropped or pasted: texts are taken, others are refused in words, and not opened in a tab. */

import { MAX_DOCUMENT, documentType } from "./documents.js";
import { text } from "./i18n.js";

const MAX_BYTES = 600_000; // of UTF-8; a message has at most 1 MiB
const TEXT_TYPES = /^text\/|^application\/(?:json|xml|javascript|x-sh|toml|yaml|x-yaml|sql)$/;
const TEXT_NAMES = /\.(?:txt|md|csv|tsv|json|jsonl|ya?ml|toml|ini|log|xml|html?|css|m?[jt]sx?|py|rb|go|rs|c|h|cc|cpp|hpp|java|kt|sh|sql|tex|srt)$/i;

export class Files {
  #catalogue;
  #acts;

  /**
   * @param {object} catalogue of texts
   * @param {HTMLElement} button opens a dialog to choose files @param {HTMLInputElement} input of this dialog
   * @param {object} acts
   * @param {(words: string) => void} acts.taken called with the text of a file, which begins with its name
   * @param {(words: string) => void} acts.refused called with the reason why a file was not taken, or not as a whole
   * @param {(file: File) => Promise<{text: string, truncated: boolean}|null>} acts.read returns the text of an office file
   */
  constructor(catalogue, button, input, acts) {
    this.#catalogue = catalogue;
    this.#acts = acts;
    button.addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      this.#take([...input.files]);
      input.value = ""; // so that the same file can be chosen again
    });
    const holdsFiles = (transfer) => transfer?.types.includes("Files") ?? false;
    addEventListener("dragover", (event) => holdsFiles(event.dataTransfer) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!holdsFiles(event.dataTransfer)) return;
      event.preventDefault();
      this.#take([...event.dataTransfer.files]);
    });
    addEventListener("paste", (event) => {
      // Office programs put a picture of a copied text next to it: then the text is meant.
      if (!holdsFiles(event.clipboardData) || event.clipboardData.types.includes("text/plain")) return;
      event.preventDefault();
      this.#take([...event.clipboardData.files]);
    });
  }

  async #take(files) {
    for (const file of files) {
      const reason = await this.#read(file);
      if (reason !== null) this.#acts.refused(text(this.#catalogue, reason, { name: file.name }));
    }
  }

  /** Takes a file; returns the key of the reason if that is not possible, else null. */
  async #read(file) {
    if (documentType(file) !== undefined) return this.#readDocument(file);
    if (!TEXT_TYPES.test(file.type) && !TEXT_NAMES.test(file.name)) return "fileKind";
    if (file.size > MAX_BYTES) return "fileLarge";
    try {
      const words = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      this.#acts.taken(`${file.name}:\n${words.trim()}`);
      return null;
    } catch {
      return "fileUnreadable";
    }
  }

  async #readDocument(file) {
    if (file.size > MAX_DOCUMENT) return "documentLarge";
    this.#acts.refused(text(this.#catalogue, "documentReading", { name: file.name }));
    const found = await this.#acts.read(file);
    if (found === null) return "documentUnreadable";
    this.#acts.taken(`${file.name}:\n${found.text}`);
    this.#acts.refused("");
    return found.truncated ? "documentCut" : null;
  }
}
