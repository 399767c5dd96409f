/**
 * The conversations of a user with an API key. They are stored at the gateway; the browser's storage holds a copy, which
 * is shown at once and also without a connection. Changes made here are sent to the gateway, now or once it is reached;
 * those of other devices and windows arrive as events.
 */

import { adoptFacts, adoptHead, adoptIds, adoptTurns, hasNewTitle, lacksTurns } from "./copies.js";
import { Conversation } from "./conversation.js";
import { prepareImport, share } from "./imports.js";
import { Outbox } from "./outbox.js";

// Conversations of the list; older ones are found by search.
const MAX_LISTED = 500;
const MAX_DRAFT = 32_768; // characters, the gateway's limit
// Time after the last key for which the draft of another device does not replace the user's.
const TYPING_MS = 5_000;
// Pause before a conversation that could not be stored is sent to the gateway again.
const RETRY_MS = 3_000;
const ID = /^conv_[0-9a-f]{32}$/;

/**
 * @typedef {object} Acts
 * @property {(request: object) => boolean} send sends a message on the socket
 * @property {(id: string) => Conversation|null} live returns the object of a conversation that is shown or answered
 * @property {() => string} shown returns the id of the conversation that is shown
 * @property {(turn: object) => boolean} isRunning returns whether this window receives the answer of a turn
 * @property {() => void} listed called when the list has changed
 * @property {(conversation: Conversation) => void} merged called when turns of a conversation have changed
 * @property {(conversation: Conversation) => void} gone called when it was deleted elsewhere
 * @property {() => void} settle stores the draft of the conversation that is shown
 * @property {(conversation: Conversation) => void} drafted called when its draft was changed elsewhere
 * @property {(conversation: Conversation) => void} missing called when its texts are not here and cannot be fetched now
 * @property {() => void} ready called when requests of a conversation may have become possible
 * @property {(progress: {done: number, count: number, failed: number}|null) => void} moving called while conversations
 *   of this browser are sent to the gateway
 */

export class SharedLibrary {
  #copies;
  #drafts;
  #gateway;
  #acts;
  #deletions;
  #renamed; // old id → id of a conversation that was stored in the browser only
  #entries = new Map(); // id → {id, title, data: {changed}}
  #sharing = new Map(); // id → promise
  #pushing = new Map(); // id → whether to push again
  #refreshing = new Map(); // id → {again, done}
  #failed = new Set(); // ids that the gateway does not take
  #isLoading = false;
  #isStale = false; // whether the list is to be loaded again
  #hasConversations = true; // whether the gateway stores conversations for this user
  #typedAt = -Infinity;
  #draftsPushed = Promise.resolve(); // one after the other, so that the last one counts

  /**
   * @param {import("./library.js").Library} copies
   * @param {import("./drafts.js").Drafts} drafts
   * @param {import("./gateway.js").Gateway} gateway
   * @param {Acts} acts
   */
  constructor(copies, drafts, gateway, acts) {
    this.#copies = copies;
    this.#drafts = drafts;
    this.#gateway = gateway;
    this.#acts = acts;
    this.#deletions = new Outbox(copies.storage, copies.scope);
    this.#renamed = prepareImport(copies);
    for (const { data } of copies.list()) this.#enter(data);
  }

  /** Returns the list, the most recently changed first. */
  list() {
    return [...this.#entries.values()].sort((one, other) => other.data.changed - one.data.changed);
  }

  /** Returns the conversation of this id as far as it is here, and brings it up to date; null for no id. */
  open(id) {
    const name = this.#renamed.get(id) ?? id;
    if (!ID.test(name) || this.isDeleted(name)) return null;
    const known = this.#entries.get(name);
    const blank = { id: name, title: known?.title ?? "", changed: known?.data.changed ?? 0, turns: {}, chosen: {} };
    const conversation = this.#acts.live(name) ?? this.#copies.open(name) ?? new Conversation({ ...blank, shared: true });
    this.refresh(conversation);
    return conversation;
  }

  /** Stores a conversation here, and its title and branch at the gateway. */
  save(conversation) {
    if (this.isDeleted(conversation.id)) return;
    this.#copies.save(conversation);
    this.#enter(conversation.data);
    this.#push(conversation);
  }

  /** Adds conversations from a file, and stores them at the gateway. */
  add(conversations) {
    for (const conversation of conversations) this.#copies.save(conversation);
    for (const [id, name] of prepareImport(this.#copies)) this.#renamed.set(id, name);
    for (const { data } of this.#copies.list()) this.#enter(data);
    this.#load();
  }

  /** Returns all conversations with their turns, as far as the gateway can be reached. */
  async all() {
    const found = [];
    for (const { id } of this.list()) {
      const conversation = this.open(id);
      if (conversation === null) continue;
      await this.refresh(conversation);
      found.push(this.#acts.live(conversation.id) ?? this.#copies.open(conversation.id) ?? conversation);
    }
    return found;
  }

  /** Removes a conversation, for good only after `forget`. */
  remove(id) {
    this.#deletions.add(id);
    this.#copies.remove(id);
    this.#entries.delete(id);
  }

  restore(conversation) {
    this.#deletions.remove(conversation.id);
    this.#copies.restore(conversation);
    this.#enter(conversation.data);
  }

  /** Deletes a removed conversation at the gateway. */
  forget(conversation) {
    this.#deletions.release(conversation.id);
    if (conversation.data.shared) this.#delete(conversation.id);
    else this.#deletions.remove(conversation.id);
  }

  isDeleted(id) {
    return this.#deletions.has(id);
  }

  /** Other windows learn of changes from the gateway, not from the storage. */
  isAbout() {
    return false;
  }

  /** Removes everything of the user from this browser. */
  clear() {
    this.#copies.clear();
    this.#drafts.clear();
    this.#deletions.clear();
  }

  /**
   * Removes everything of the user, who has signed in with another key, from this browser. What is only here goes along
   * if the gateway shows that the user is the same, and otherwise stays where no other user sees it.
   *
   * @param {import("./library.js").Library} copies those of the new key
   */
  async handOver(copies) {
    const onlyHere = this.#unshared();
    const shared = this.#copies.list().filter(({ data }) => data.shared);
    if (onlyHere.length === 0) return this.clear();
    const isSame = shared.length > 0 && (await this.#gateway.turns(shared[0].id)).status === 200;
    if (isSame) onlyHere.forEach((conversation) => copies.save(conversation));
    for (const { id } of isSame ? [...shared, ...onlyHere] : shared) this.#copies.drop(id);
    this.#drafts.clear();
  }

  /** Number of conversations that would be lost by `clear`. */
  get unshared() {
    return this.#unshared().length;
  }

  /** To be called when the connection is open. */
  connected() {
    this.#failed.clear();
    this.#acts.send({ type: "conversation.subscribe" });
  }

  /** Processes an event of the socket; returns whether it is about conversations. */
  receive(event) {
    if (event.type === "error" && event.error?.param === "conversation" && event.stream_id === undefined) {
      this.#hasConversations = false; // the gateway has no keys any more
      this.#acts.ready();
    } else if (event.type === "conversation.subscribed") {
      this.#hasConversations = true;
      this.#load();
    } else if (event.type === "conversation.list_changed") {
      this.#load();
    } else if (event.type === "conversation.updated") {
      this.#updated(event.conversation);
    } else if (event.type === "conversation.deleted") {
      this.#gone(event.conversation_id);
      this.#acts.listed();
    } else {
      return false;
    }
    return true;
  }

  /** Whether requests of a conversation can be sent. If not, it is stored at the gateway now. */
  isReady(conversation) {
    const { id, data } = conversation;
    if (data.shared || !this.#hasConversations || this.#failed.has(id)) return true;
    const isNew = !this.#sharing.has(id);
    const sharing = this.#share(conversation);
    if (isNew) sharing.then((isDone) => setTimeout(() => this.#acts.ready(), isDone || this.#failed.has(id) ? 0 : RETRY_MS));
    return false;
  }

  /** To be called when the user types. */
  typed() {
    this.#typedAt = performance.now();
  }

  /** Sends the draft of a conversation, as it is stored in the browser, to the gateway. */
  draftSaved(conversation) {
    this.#draftsPushed = this.#draftsPushed.then(() => this.#pushDraft(conversation));
  }

  /** Brings the turns of a conversation up to date. */
  refresh(conversation) {
    const { id, data } = conversation;
    const running = this.#refreshing.get(id);
    if (!data.shared) return;
    if (running !== undefined) {
      running.again = true;
      return running.done;
    }
    const refresh = { again: false };
    this.#refreshing.set(id, refresh);
    refresh.done = this.#refreshAll(conversation, refresh);
    return refresh.done;
  }

  async #refreshAll(conversation, refresh) {
    const { id, data } = conversation;
    do {
      refresh.again = false;
      const { status, body } = await this.#gateway.turns(id);
      if (status === 200) this.#refreshed(conversation, body);
      else if (status === 404) this.#gone(id);
      else if (!data.loaded && Object.keys(data.turns).length === 0) this.#acts.missing(conversation);
    } while (refresh.again && !this.isDeleted(id));
    this.#refreshing.delete(id);
  }

  #refreshed(opened, found) {
    if (this.isDeleted(opened.id)) return;
    const conversation = this.#acts.live(opened.id) ?? opened;
    adoptFacts(conversation, found.conversation);
    adoptTurns(conversation, found, this.#acts.isRunning);
    adoptHead(conversation, found.conversation);
    this.#adoptDraft(conversation, found.conversation);
    this.#copies.save(conversation);
    this.#enter(conversation.data);
    this.#acts.merged(conversation);
    this.#push(conversation);
  }

  /** Loads the list, then sends what was changed here without a connection. */
  async #load() {
    this.#isStale = true;
    if (this.#isLoading) return;
    this.#isLoading = true;
    while (this.#isStale) {
      this.#isStale = false;
      await this.#loadList();
    }
    this.#isLoading = false;
  }

  async #loadList() {
    for (const id of this.#deletions.due()) await this.#delete(id);
    const before = new Set(this.#copies.list().filter(({ data }) => data.shared).map(({ id }) => id));
    const listed = new Set();
    let after = null;
    do {
      const { status, body } = await this.#gateway.conversations(after);
      if (status === 400) return void (this.#isStale = true); // the conversation at the border was deleted
      if (status !== 200) return; // the next connection tries again
      for (const one of body.data) {
        listed.add(one.id);
        this.#noteFacts(one);
      }
      after = body.has_more && listed.size < MAX_LISTED ? body.last_id : null;
    } while (after !== null);
    for (const id of before) if (!listed.has(id)) await this.#unlisted(id, listed.size >= MAX_LISTED);
    this.#acts.listed();
    const shown = this.#acts.live(this.#acts.shown());
    if (shown !== null) {
      this.refresh(shown);
      this.draftSaved(shown);
    }
    for (const one of this.#copies.list()) this.#push(this.#acts.live(one.id) ?? one);
    await this.#move();
  }

  /** Removes the copy of a conversation that is not in the list: it was deleted, or is older than the list. */
  async #unlisted(id, isListCut) {
    if (!isListCut) return this.#gone(id);
    if (this.#acts.live(id) !== null) return;
    this.#copies.drop(id);
    this.#entries.delete(id);
  }

  #noteFacts(body) {
    const known = this.#acts.live(body.id) ?? this.#copies.open(body.id);
    if (this.isDeleted(body.id) || isOnlyHere(known)) return;
    const conversation = known ?? new Conversation({ id: body.id, title: "", changed: 0, turns: {}, chosen: {} });
    const before = JSON.stringify([conversation.data.changed, conversation.data.metadata, conversation.data.shared]);
    adoptFacts(conversation, body);
    const { changed, metadata, shared } = conversation.data;
    if (before !== JSON.stringify([changed, metadata, shared])) this.#copies.save(conversation);
    this.#enter(conversation.data);
  }

  #updated(body) {
    if (this.isDeleted(body.id)) return;
    this.#noteFacts(body);
    const conversation = this.#acts.live(body.id);
    if (conversation !== null && !isOnlyHere(conversation)) {
      adoptIds(conversation, body);
      const isComplete = adoptHead(conversation, body) && !lacksTurns(conversation, body, this.#acts.isRunning);
      this.#adoptDraft(conversation, body);
      this.#copies.save(conversation);
      if (isComplete) this.#acts.merged(conversation);
      else this.refresh(conversation);
    }
    this.#acts.listed();
  }

  #gone(id) {
    const conversation = this.#acts.live(id) ?? this.#copies.open(id);
    this.#copies.drop(id);
    this.#entries.delete(id);
    this.#deletions.remove(id);
    if (conversation === null) return;
    this.#drafts.store(conversation, "");
    this.#acts.gone(conversation);
  }

  /** Takes over a draft that was changed elsewhere, unless the user has changed it here, too. */
  #adoptDraft(conversation, body) {
    const { draft: known = "" } = conversation.data;
    const isTyping = performance.now() - this.#typedAt < TYPING_MS && conversation.id === this.#acts.shown();
    if (body.draft === known || isTyping) return;
    this.#acts.settle();
    conversation.data.draft = body.draft;
    if (this.#drafts.of(conversation) !== known) return;
    this.#drafts.store(conversation, body.draft);
    this.#acts.drafted(conversation);
  }

  async #pushDraft(conversation) {
    const words = this.#drafts.of(conversation);
    const { draft: known = "", shared } = conversation.data;
    if (!shared || words === known || words.length > MAX_DRAFT) return;
    conversation.data.draft = words; // before the answer, since the event may arrive before it
    const { status } = await this.#gateway.update(conversation.id, { draft: words });
    if (status === 200) this.#copies.save(conversation);
    else if (conversation.data.draft === words) conversation.data.draft = known;
  }

  /** Sends title and branch, if they were changed here. */
  async #push(conversation) {
    const { id, data } = conversation;
    if (!data.shared || !(hasNewTitle(data) || data.stepped)) return;
    if (this.#pushing.has(id)) return this.#pushing.set(id, true);
    this.#pushing.set(id, false);
    const head = data.stepped ? conversation.path.findLast(({ entry }) => entry)?.entry : undefined;
    const metadata = hasNewTitle(data) ? { ...data.metadata, title: data.title } : undefined;
    delete data.stepped;
    const { status, body } = await this.#gateway.update(id, { metadata, head });
    const again = this.#pushing.get(id);
    this.#pushing.delete(id);
    if (status === 404) return this.#gone(id);
    if (status !== 200 && head !== undefined) data.stepped = true; // the next connection tries again
    if (status !== 200) return;
    data.metadata = body.metadata;
    data.head = body.head;
    this.#copies.save(conversation);
    if (again) this.#push(conversation);
  }

  /** Stores a conversation at the gateway that is only here; returns whether that is done. */
  #share(conversation) {
    const { id } = conversation;
    if (!this.#sharing.has(id)) {
      const sharing = share(conversation, this.#gateway).then((result) => {
        this.#sharing.delete(id);
        if (result === "gone") this.#gone(id);
        else if (result === "refused") this.#failed.add(id);
        else if (result === "done") this.save(conversation);
        return result === "done";
      });
      this.#sharing.set(id, sharing);
    }
    return this.#sharing.get(id);
  }

  /** Moves the conversations that are only in this browser to the gateway, the oldest first. */
  async #move() {
    const waiting = this.#unshared().reverse();
    let done = 0;
    for (const one of waiting) {
      this.#acts.moving({ done, count: waiting.length, failed: 0 });
      const conversation = this.#acts.live(one.id) ?? one;
      if (!(await this.#share(conversation)) && !this.#failed.has(one.id)) break; // no connection
      done += 1;
    }
    if (waiting.length > 0) this.#acts.moving(this.#failed.size > 0 ? { done, count: done, failed: this.#failed.size } : null);
  }

  /** Conversations with answers that are only in this browser, the last changed first. */
  #unshared() {
    return this.#copies.list().filter(isOnlyHere);
  }

  async #delete(id) {
    const { status } = await this.#gateway.remove(id);
    if (status === 200 || status === 404) this.#deletions.remove(id);
  }

  #enter({ id, title, changed }) {
    this.#entries.set(id, { id, title, data: { changed } });
  }
}

/** Whether a conversation has turns and is not, or not wholly, stored at the gateway. */
function isOnlyHere(conversation) {
  return conversation !== null && !conversation.data.shared && conversation.turns.length > 0;
}
