/** Files that are dropped or pasted: texts are taken, others are refused in words. A browser would open them in a tab. */

import { text } from "./i18n.js";

const MAX_BYTES = 600_000; // of UTF-8; a message has at most 1 MiB
const TEXT_TYPES = /^text\/|^application\/(?:json|xml|javascript|x-sh|toml|yaml|x-yaml|sql)$/;
const TEXT_NAMES = /\.(?:txt|md|csv|tsv|json|jsonl|ya?ml|toml|ini|log|xml|html?|css|m?[jt]sx?|py|rb|go|rs|c|h|cc|cpp|hpp|java|kt|sh|sql|tex|srt)$/i;

export class Files {
  #catalogue;
  #acts;

  /**
   * @param {object} catalogue of texts
   * @param {object} acts
   * @param {(words: string) => void} acts.taken called with the text of a file, which begins with its name
   * @param {(words: string) => void} acts.refused called with the reason why a file was not taken
   */
  constructor(catalogue, acts) {
    this.#catalogue = catalogue;
    this.#acts = acts;
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
}
