/** The conversation that is open: its turns on the page, and what a reader does with them. */

import { Conversation } from "./conversation.js";
import { TurnView } from "./message.js";

export class Talk {
  #catalogue;
  #log;
  #follower;
  #responses;
  #window;
  #changed;
  #views = new Map(); // turn id → view
  #conversation = new Conversation();

  /**
   * @param {object} catalogue of texts
   * @param {HTMLElement} log that the turns go into
   * @param {import("./ui.js").Follower} follower
   * @param {import("./responses.js").Responses} responses
   * @param {string} window name of this window, which alone goes on with what it has asked
   * @param {(edited: boolean) => void} changed called when other turns are shown; `edited` if there is something to keep
   */
  constructor(catalogue, log, follower, responses, window, changed) {
    this.#catalogue = catalogue;
    this.#log = log;
    this.#follower = follower;
    this.#responses = responses;
    this.#window = window;
    this.#changed = changed;
  }

  get conversation() {
    return this.#conversation;
  }

  get isEmpty() {
    return this.#conversation.path.length === 0;
  }

  /** The turns whose answers are on their way; more than one only if the reader went from one version to another. */
  get running() {
    return this.#responses.running(this.#conversation);
  }

  /** Shows this conversation, from its end. */
  open(conversation) {
    this.#conversation = conversation;
    this.#views.clear();
    this.#log.replaceChildren();
    for (const turn of conversation.path) this.#show(turn);
    this.#follower.catchUp();
    this.#changed(false);
  }

  /** Takes over what another window has done in this conversation. */
  merge(data) {
    if (this.running.length > 0 || !this.#conversation.merge(data, true)) return;
    this.open(this.#conversation);
  }

  /** Asks a question after all that is shown. */
  ask(question) {
    this.#askBelow(this.#conversation.path.at(-1)?.id ?? null, question);
  }

  stop() {
    this.running.forEach((turn) => this.#responses.stop(turn));
  }

  /** Lets the reader change the last question. */
  editLast() {
    this.#views.get(this.#conversation.path.at(-1)?.id)?.edit();
  }

  /** To be told what became of a turn of the open conversation. */
  told(turn, phase) {
    this.#views.get(turn.id)?.show(phase);
  }

  #askBelow(parent, question) {
    if (this.running.length > 0) return;
    const turn = this.#conversation.add(question, parent);
    turn.window = this.#window;
    this.#hideBelow(turn);
    this.#responses.ask(turn, this.#conversation); // first: what is not on its way is shown as ended
    this.#show(turn);
    this.#follower.catchUp();
    this.#changed(true);
  }

  #step(turn, step) {
    const versions = this.#conversation.versions(turn);
    const other = versions[versions.indexOf(turn) + step];
    if (other === undefined) return;
    this.#conversation.choose(other);
    this.#hideBelow(other);
    const path = this.#conversation.path;
    for (const shown of path.slice(path.indexOf(other))) this.#show(shown);
    this.#views.get(other.id).focusVersions(step);
    this.#changed(true);
  }

  /** Takes from the page what is not on the path to this turn: what stood in its place, and below. */
  #hideBelow(turn) {
    const kept = new Set(this.#conversation.path.map(({ id }) => id));
    for (const [id, view] of this.#views) {
      if (kept.has(id) && id !== turn.id) continue;
      view.elements.forEach((element) => element.remove());
      this.#views.delete(id);
    }
  }

  #show(turn) {
    const versions = this.#conversation.versions(turn);
    const position = { number: versions.indexOf(turn) + 1, count: versions.length };
    const view = new TurnView(this.#catalogue, turn, position, {
      edit: (question) => this.#askBelow(turn.parent, question),
      again: () => this.#askBelow(turn.parent, turn.question),
      step: (step) => this.#step(turn, step),
      grown: () => this.#follower.grown(),
    });
    this.#views.set(turn.id, view);
    this.#log.append(...view.elements);
    const phase = this.#responses.phaseOf(turn);
    if (phase !== null) view.show(phase);
    else view.end();
  }
}
