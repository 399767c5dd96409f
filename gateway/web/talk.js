/** The open conversation: the display of its turns, and the user's actions on them. */

import { Conversation } from "./conversation.js";
import { TurnView } from "./message.js";

// Answers that were asked for longer ago than this are not expected any more, in whichever window.
export const STALE_MS = 600_000;
// Number of turns that fill any screen, and time for which earlier turns are drawn between two events.
const DRAWN_AT_ONCE = 12;
const PORTION_MS = 30;
// Interval at which windows are checked whose answers are expected.
const CHECK_MS = 3_000;

export class Talk {
  #catalogue;
  #log;
  #follower;
  #announcer;
  #responses;
  #window;
  #peers;
  #isLoading;
  #changed;
  #elsewhere = new Set(); // turns whose answers arrive in other windows
  #undrawn = []; // turns at the beginning of the path that have no view yet
  #drawing = 0;
  #drawn = new Map(); // turn id → what was shown of it
  #views = new Map(); // turn id → view
  #conversation = new Conversation();

  /**
   * @param {object} catalogue of texts
   * @param {HTMLElement} log element that contains the turns
   * @param {import("./follower.js").Follower} follower
   * @param {import("./announcer.js").Announcer} announcer
   * @param {import("./responses.js").Responses} responses
   * @param {string} window id of this window: only the window that sent a question resumes it
   * @param {import("./peers.js").Peers} peers
   * @param {() => boolean} isLoading returns whether the model is not loaded yet
   * @param {(edited: boolean) => void} changed called when the displayed turns change; `edited` if they must be saved
   */
  constructor(catalogue, log, follower, announcer, responses, window, peers, isLoading, changed) {
    this.#catalogue = catalogue;
    this.#log = log;
    this.#follower = follower;
    this.#announcer = announcer;
    this.#responses = responses;
    this.#window = window;
    this.#peers = peers;
    this.#isLoading = isLoading;
    addEventListener("beforeprint", () => this.#drawEarlier(Infinity));
    setInterval(() => this.#checkElsewhere(), CHECK_MS);
    this.#changed = changed;
  }

  get conversation() {
    return this.#conversation;
  }

  get isEmpty() {
    return this.#conversation.path.length === 0;
  }

  /** The turns with running answers; more than one only if the user has switched versions. */
  get running() {
    return this.#responses.running(this.#conversation);
  }

  /** Whether an answer to the displayed turns is running, in this window or in another one. */
  get isBusy() {
    return this.running.length > 0 || this.#elsewhere.size > 0;
  }

  /** Shows this conversation, scrolled to its end. */
  open(conversation) {
    this.#conversation = conversation;
    this.#elsewhere = new Set(conversation.turns.filter((turn) => this.#isElsewhere(turn)));
    this.#draw();
    this.#announcer.follow(this.running.at(-1) ?? null);
    this.#follower.catchUp();
    this.#changed(false);
  }

  /** Merges changes of another window; returns the turns whose answers have ended there. */
  merge(data) {
    if (this.running.length > 0) return [];
    const known = new Set(this.#conversation.turns.map(({ id }) => id));
    const changed = this.#conversation.merge(data, true);
    this.#elsewhere = new Set(this.#conversation.turns.filter((turn) => this.#isElsewhere(turn)));
    if (changed.length === 0) return [];
    const isGrowing = (turn) => known.has(turn.id) && this.#elsewhere.has(this.#conversation.data.turns[turn.id]);
    if (changed.every(isGrowing)) this.#elsewhere.forEach((turn) => this.#showElsewhere(turn));
    else this.#follower.keepPlace(() => this.#draw());
    this.#changed(false);
    return changed.filter(({ state }) => state !== "open");
  }

  /** Shows what has changed in the turns, apart from running answers, without moving what the user reads. */
  refresh() {
    this.#elsewhere = new Set(this.#conversation.turns.filter((turn) => this.#isElsewhere(turn)));
    const path = this.#conversation.path;
    const drawn = [...this.#undrawn.map(({ id }) => id), ...this.#views.keys()];
    const isSame = (turn) => this.#undrawn.includes(turn) || this.#drawn.get(turn.id) === this.#describe(turn);
    const isExtended = drawn.every((id, number) => path[number]?.id === id) && path.slice(0, drawn.length).every(isSame);
    if (isExtended && path.length === drawn.length) return;
    if ([...this.#views.values()].some((view) => view.editing)) return; // shown when the user has finished
    if (isExtended) path.slice(drawn.length).forEach((turn) => this.#show(turn));
    else this.#follower.keepPlace(() => this.#draw());
    this.#follower.grown();
    this.#announcer.follow(this.running.at(-1) ?? null);
    this.#changed(false);
  }

  /** Scrolls to a turn of the displayed branch. */
  showTurn(turn) {
    this.#drawEarlier(Infinity);
    this.refresh();
    this.#follower.lookAt(this.#views.get(turn.id)?.elements[0]);
  }

  /** Asks a question after the last displayed turn; scrolls there if `follow`. */
  ask(question, follow = true) {
    this.#askBelow(this.#conversation.path.at(-1)?.id ?? null, question, follow);
  }

  stop() {
    this.running.forEach((turn) => this.#responses.stop(turn));
  }

  /** Opens the editor of the last question. */
  editLast() {
    this.#views.get(this.#conversation.path.at(-1)?.id)?.edit();
  }

  /** Shows a new phase of a turn of the open conversation. */
  phaseChanged(turn, phase) {
    this.#views.get(turn.id)?.show(phase);
    if (phase.kind === "ended") this.#drawn.set(turn.id, this.#describe(turn));
    if (phase.kind === "ended") this.#announcer.ended(turn);
    else this.#announcer.changed(turn);
  }

  /** Draws the newest turns at once, and those before them in small portions: a long conversation opens at once. */
  #draw() {
    this.#views.clear();
    this.#drawn.clear();
    this.#log.replaceChildren();
    const path = this.#conversation.path;
    this.#undrawn = path.slice(0, -DRAWN_AT_ONCE);
    for (const turn of path.slice(-DRAWN_AT_ONCE)) this.#show(turn);
    this.#drawEarlierSoon();
  }

  #drawEarlierSoon() {
    clearTimeout(this.#drawing);
    if (this.#undrawn.length > 0) this.#drawing = setTimeout(() => this.#drawEarlier(PORTION_MS), 0);
  }

  #drawEarlier(duration) {
    const end = performance.now() + duration;
    const portion = document.createDocumentFragment();
    while (this.#undrawn.length > 0 && performance.now() < end) {
      this.#show(this.#undrawn.pop(), (elements) => portion.prepend(...elements));
    }
    this.#follower.keepDistance(() => this.#log.prepend(portion));
    this.#drawEarlierSoon();
  }

  #askBelow(parent, question, follow = true) {
    if (this.isBusy) return;
    const turn = this.#conversation.add(question, parent);
    turn.window = this.#window;
    this.#hideBelow(turn);
    this.#announcer.follow(turn);
    this.#responses.ask(turn, this.#conversation); // before #show, which shows a turn that is not running as ended
    this.#show(turn);
    if (follow) this.#follower.catchUp();
    else this.#follower.grown();
    this.#changed(true);
  }

  #step(turn, step) {
    const versions = this.#conversation.versions(turn);
    const other = versions[versions.indexOf(turn) + step];
    if (other === undefined) return;
    this.#conversation.step(other);
    this.#hideBelow(other);
    const path = this.#conversation.path;
    for (const shown of path.slice(path.indexOf(other))) this.#show(shown);
    this.#views.get(other.id).focusVersions(step);
    this.#changed(true);
  }

  /** Removes the views of turns that are not on the path to this turn: its siblings and their descendants. */
  #hideBelow(turn) {
    const path = new Set(this.#conversation.path.map(({ id }) => id));
    for (const [id, view] of this.#views) {
      if (path.has(id) && id !== turn.id) continue;
      view.elements.forEach((element) => element.remove());
      this.#views.delete(id);
    }
  }

  #show(turn, insert = (elements) => this.#log.append(...elements)) {
    const versions = this.#conversation.versions(turn);
    const position = { number: versions.indexOf(turn) + 1, count: versions.length };
    const view = new TurnView(this.#catalogue, turn, position, {
      edit: (question) => this.#askBelow(turn.parent, question),
      again: () => this.#askBelow(turn.parent, turn.question),
      step: (step) => this.#step(turn, step),
      isLoading: this.#isLoading,
      grown: () => this.#follower.grown(),
    });
    this.#views.set(turn.id, view);
    this.#drawn.set(turn.id, this.#describe(turn));
    insert(view.elements);
    const phase = this.#responses.phaseOf(turn);
    if (phase !== null) view.show(phase);
    else if (this.#elsewhere.has(turn)) this.#showElsewhere(turn);
    else view.end();
  }

  /** Returns a text that changes with what is shown of a turn, except while its answer arrives. */
  #describe(turn) {
    const { state, question, answer, reason } = turn;
    const isRunning = this.#responses.phaseOf(turn) !== null;
    return JSON.stringify([question, this.#conversation.versions(turn).map(({ id }) => id), isRunning || [state, answer, reason]]);
  }

  /** Whether another window may be receiving the answer of a turn. */
  #isElsewhere(turn) {
    const isRecent = Date.now() - turn.at < STALE_MS;
    return turn.state === "open" && turn.window !== this.#window && isRecent && this.#responses.phaseOf(turn) === null;
  }

  #showElsewhere(turn) {
    this.#views.get(turn.id)?.show({ kind: "elsewhere" }, this.#conversation.data.turns[turn.id]);
  }

  /** Ends the display of answers whose windows were closed. */
  async #checkElsewhere() {
    for (const turn of this.#elsewhere) {
      if (turn.entry) continue; // the gateway knows when it ends
      if (await this.#peers.isOpen(turn.window)) continue;
      if (!this.#elsewhere.delete(turn)) continue; // ended in the meantime
      this.#views.get(turn.id)?.end();
      this.#changed(false);
    }
  }
}
