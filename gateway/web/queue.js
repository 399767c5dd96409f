/** Messages that were written while an answer was running, and are sent when it has ended. */

import { stamp } from "./ui.js";

export class Queue {
  #catalogue;
  #list;
  #takenBack;
  #queued = []; // {conversation, words}, in the order of sending

  /**
   * @param {object} catalogue of texts
   * @param {HTMLElement} list element that shows the messages of the open conversation
   * @param {(words: string) => void} takenBack called when the user takes a message back, to edit it
   */
  constructor(catalogue, list, takenBack) {
    this.#catalogue = catalogue;
    this.#list = list;
    this.#takenBack = takenBack;
  }

  add(conversation, words) {
    this.#queued.push({ conversation, words });
    this.show(conversation);
  }

  /** Removes and returns the next message of a conversation; undefined if there is none. */
  next(conversation) {
    const entry = this.#queued.find((queued) => queued.conversation.id === conversation.id);
    if (entry !== undefined) this.#remove(entry);
    return entry?.words;
  }

  /** Returns the messages of a conversation as one draft. */
  draftOf(conversation) {
    return this.#of(conversation)
      .map(({ words }) => words)
      .join("\n\n");
  }

  /** Removes all messages of a conversation. */
  clear(conversation) {
    this.#of(conversation).forEach((entry) => this.#remove(entry));
  }

  /** Conversations with messages. */
  get conversations() {
    return [...new Set(this.#queued.map(({ conversation }) => conversation))];
  }

  /** Shows the messages of the open conversation. */
  show(conversation) {
    this.#list.replaceChildren(...this.#of(conversation).map((entry) => this.#element(entry)));
    this.#list.hidden = this.#list.childElementCount === 0;
  }

  #of(conversation) {
    return this.#queued.filter((queued) => queued.conversation.id === conversation.id);
  }

  #remove(entry) {
    this.#queued.splice(this.#queued.indexOf(entry), 1);
    this.#list.querySelectorAll("li").forEach((element) => element.entry === entry && element.remove());
    this.#list.hidden = this.#list.childElementCount === 0;
  }

  #element(entry) {
    const element = stamp(this.#catalogue, "queued-message");
    element.entry = entry;
    element.querySelector(".queued-text").textContent = entry.words;
    element.querySelector("button").addEventListener("click", () => {
      this.#remove(entry);
      this.#takenBack(entry.words);
    });
    return element;
  }
}
