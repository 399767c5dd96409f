/** Assembly of the chat page: socket ↔ responses ↔ open conversation ↔ storage of the browser. */

import { Ahead } from "./ahead.js";
import { Announcer } from "./announcer.js";
import { Composer } from "./composer.js";
import { ContextMeter } from "./context.js";
import { Conversation, newId } from "./conversation.js";
import { Documents } from "./documents.js";
import { Drafts } from "./drafts.js";
import { Files } from "./files.js";
import { Follower } from "./follower.js";
import { Gateway } from "./gateway.js";
import { catalogueFor, text, translate } from "./i18n.js";
import { KEY, Keyring } from "./keyring.js";
import { Library, storageOf } from "./library.js";
import { Me } from "./me.js";
import { displayName } from "./names.js";
import { Peers } from "./peers.js";
import { bindPreferences, preferredLanguage } from "./preferences.js";
import { Queue } from "./queue.js";
import { Responses } from "./responses.js";
import { Retry } from "./retry.js";
import { Route } from "./route.js";
import { Shelf } from "./shelf.js";
import { Search } from "./search.js";
import { SharedLibrary } from "./shared.js";
import { SignIn } from "./signin.js";
import { Connection, socketAddress } from "./socket.js";
import { STALE_MS, Talk } from "./talk.js";
import { Titles } from "./titles.js";
import { Tools } from "./tools.js";
import { Toast, isComposing, showStatus } from "./ui.js";

// Interval at which a growing answer is saved: a crash of the browser loses at most this much.
const SAVE_MS = 1_000;
// Pause in typing after which the draft is saved.
const DRAFT_MS = 300;
// Interval at which the model's state is read while an answer waits.
const LOADING_MS = 2_000;
// One lane per concurrent answer; the gateway allows 16 lanes per connection.
const LANES = Array.from({ length: 8 }, (_, number) => `answer-${number}`);
const NAME = "Samovar"; // title of the page without a conversation
const OPEN = "samovar.open"; // storage key: id of the conversation that this window shows
const WINDOW = "samovar.window"; // storage key: id of this window

const catalogue = await catalogueFor(preferredLanguage());
document.documentElement.lang = catalogue.tag;
translate(document, catalogue);

const find = (id) => document.getElementById(id);
const [log, hello] = ["log", "hello"].map(find);

const own = storageOf("sessionStorage");
if (own.getItem(WINDOW) === null) own.setItem(WINDOW, newId());
const windowName = own.getItem(WINDOW);
const lasting = storageOf("localStorage");
const keyring = new Keyring(lasting, own);
const gateway = new Gateway(() => keyring.key);
const me = new Me(catalogue, find("me"), () => keyring.key);
const toast = new Toast(find("toast"));
const responses = new Responses((request) => connection.send(request), phaseChanged, () => performance.now(), LANES, (conversation) => library.isReady(conversation));
const announcer = new Announcer(catalogue, find("announcer"));
const talk = new Talk(catalogue, log, new Follower(find("scroll"), find("newest")), announcer, responses, windowName, new Peers(windowName), () => isLoading, changed);
const queue = new Queue(catalogue, find("queued"), takeBack);
const context = new ContextMeter(catalogue, find("context"), log);
const documents = new Documents(() => keyring.key);
const composer = new Composer(catalogue, find("form"), {
  send: submit,
  stop: () => talk.stop(),
  editLast: () => talk.editLast(),
  changed: draftChanged,
  count: (words) => documents.count(words),
  limit: () => context.limit,
});
const route = new Route({ open: (id) => open(id), closeDrawer: () => shelf.uncover() });
const shelf = new Shelf(catalogue, find("conversations"), {
  open,
  rename,
  remove,
  covered: () => route.openDrawer(),
  uncovered: () => route.closeDrawer(),
});
new Files(catalogue, find("attach"), find("files"), {
  taken: (words) => composer.attach(words),
  refused: (words) => toast.tell(words),
  read: (file) => documents.read(file),
});
new Search(catalogue, find("search"), find("conversations"), find("found"), {
  search: (words, after) => gateway.search(words, after),
  open: openFound,
});
const ahead = new Ahead((request) => connection.send(request));
const titles = new Titles(catalogue, (request) => connection.send(request), titled);
const signIn = new SignIn(catalogue, find("sign-in"), (key) => gateway.accepts(key), signedIn);
const connection = new Connection(socketAddress("v1/responses", document.baseURI), {
  state: connectionChanged,
  event: (event) => ahead.receive(event) || titles.receive(event) || library.receive(event) || responses.receive(event),
  protocols: () => keyring.protocols,
  allowed: async () => (await gateway.accepts(keyring.key)) !== false,
});
const tools = new Tools(catalogue, find("menu"), lasting, {
  conversation: () => talk.conversation,
  conversations: () => library.all(),
  changed: optionsChanged,
  isDeleted: (id) => library.isDeleted(id),
  imported,
  tell: (words) => toast.tell(words),
  scope: () => keyring.scope,
});
const retry = new Retry(catalogue, find("retry"), () => connection.retryNow());
let wasOpen = false;
let isLoading = false; // whether no engine has loaded the model
const unsaved = new Map(); // conversation id → conversation with unsaved changes
const removed = new Set(); // ids of deleted conversations, whose answers may still be arriving
const reported = new Set(); // kinds of loss that the user knows of
let saving = 0;
let draftTimer = 0;
let isLeaving = false; // whether the page is about to forget its user
let drafts;
let library = makeLibrary();

/** Returns the conversations of the user: at the gateway with a key, otherwise in this browser. */
function makeLibrary() {
  const stored = new Library(lasting, keyring.scope, lost);
  drafts = new Drafts(lasting, keyring.scope);
  if (keyring.key === null) return stored;
  return new SharedLibrary(stored, drafts, gateway, {
    send: (request) => connection.send(request),
    live,
    shown: () => talk.conversation.id,
    isRunning: (turn) => responses.phaseOf(turn) !== null,
    listed: showShelf,
    merged,
    gone,
    settle: () => drafts.store(talk.conversation, composer.text),
    drafted: (conversation) => conversation.id === talk.conversation.id && composer.write(drafts.of(conversation)),
    missing: (conversation) => conversation.id === talk.conversation.id && toast.tell(text(catalogue, "missing")),
    ready: () => responses.proceed(),
    moving: showKept,
  });
}

function connectionChanged(state, pause) {
  if (state === "open") {
    wasOpen = true;
    signIn.close();
    responses.connected();
    library.connected();
    showKept();
    loadServerInfo();
    me.refresh();
  } else if (state === "waiting") {
    responses.lost();
    ahead.lost();
    titles.lost();
  } else if (state === "refused") {
    signIn.open(keyring.key === null ? "" : "keyRefused");
  }
  showStatus(catalogue, find("status"), state, wasOpen);
  retry.show(pause);
}

/** Loads model and settings. Called on every connection: the gateway may have restarted with other ones. */
async function loadServerInfo() {
  const [page, model] = await Promise.all([gateway.page(), gateway.model()]);
  ahead.allowed = page.encode_ahead === true;
  titles.allowed = page.titles === true;
  tools.offer(page.offered_instructions ?? {});
  // The operator's words; null stands for the page's own, "" for none.
  find("generated").textContent = page.answer_notice ?? text(catalogue, "generated");
  showGenerated();
  if (talk.running.length === 0) ahead.opened(talk.conversation);
  find("model").hidden = model === null;
  if (model === null) return;
  find("model").textContent = displayName(model);
  find("model").title = model.id;
  context.limit = model.context_length;
  context.show(talk.conversation.path);
}

/** Looks whether a waiting answer waits for the model to be loaded. */
async function watchLoading() {
  isLoading = responses.isWaiting && (await gateway.model())?.loaded === false;
}

async function signedIn(key, options) {
  const before = keyring.key;
  keyring.store(key, options);
  if (before !== null && before !== key) {
    await library.handOver(new Library(lasting, keyring.scope)).catch(() => {});
    return forget();
  }
  drafts.store(talk.conversation, ""); // it becomes a draft of the user
  new Library(lasting, keyring.scope).adopt();
  library = makeLibrary();
  find("sign-out").hidden = false;
  connection.restart();
  startConversation();
}

function signOut() {
  saveEverything();
  if (library.unshared > 0 && !confirm(text(catalogue, "signOutLoses", { count: library.unshared }))) return;
  toast.hide(); // completes a deletion while the key is still there
  own.removeItem(OPEN);
  library.clear();
  keyring.clear();
  forget();
}

/** Reloads the page, so that nothing of a user stays in memory or in view for the next one. */
function forget() {
  isLeaving = true;
  connection.close();
  route.show(null, true);
  location.reload();
}

/** Processes a new phase of a turn, whether or not its conversation is open. */
function phaseChanged(turn, phase, conversation) {
  if (conversation.id === talk.conversation.id) talk.phaseChanged(turn, phase);
  if (phase.kind === "ended") conversation.touch();
  saveSoon(conversation, phase.kind === "more" ? SAVE_MS : 0);
  showBusy();
  if (phase.kind !== "ended") return;
  titles.ended(turn, conversation);
  askNext(turn, conversation);
  me.refresh();
  if (turn.unfollowed) library.refresh(conversation);
}

/** Shows turns of a conversation that have come from the gateway, and receives running answers among them. */
function merged(conversation) {
  continueInterrupted(conversation);
  if (conversation.id === talk.conversation.id) talk.refresh();
  showShelf();
}

/** Processes the deletion of a conversation on another device. */
function gone(conversation) {
  removed.add(conversation.id);
  unsaved.delete(conversation.id);
  if (conversation.id === talk.conversation.id) leaveDeleted(conversation);
  else responses.running(conversation).forEach((turn) => responses.stop(turn));
}

/** Sends the next queued message after an answer; after one that has failed or was stopped, it becomes a draft again. */
function askNext(turn, conversation) {
  if (responses.running(conversation).length > 0) return;
  if (turn.state !== "done") return takeAllBack(conversation);
  const words = queue.next(conversation);
  if (words === undefined) return;
  if (conversation.id === talk.conversation.id) return talk.ask(words, false);
  const next = conversation.add(words, conversation.path.at(-1)?.id ?? null);
  next.window = windowName;
  responses.ask(next, conversation);
}

function changed(edited) {
  own.setItem(OPEN, isNew() ? "" : talk.conversation.id);
  if (edited) route.show(talk.conversation.id, true);
  if (edited) saveSoon(talk.conversation, 0);
  hello.hidden = !isNew();
  document.body.dataset.empty = String(isNew());
  showGenerated();
  showBusy();
  showShelf();
}

/** Whether the open conversation is one that is stored nowhere yet. */
function isNew() {
  return talk.isEmpty && !talk.conversation.data.shared;
}

/** Says where the conversations are, if that is only in this browser; `moving` is the progress of their import. */
function showKept(moving = null) {
  const isOnlyHere = keyring.key === null;
  find("kept").hidden = !isOnlyHere && moving === null;
  find("search").hidden = isOnlyHere; // the gateway searches
  if (isOnlyHere) find("kept").textContent = text(catalogue, "keptHere");
  else if (moving !== null) find("kept").textContent = text(catalogue, moving.failed > 0 ? "notMoved" : "moving", moving);
}

/** Shows below the answers that they need checking. */
function showGenerated() {
  find("generated").hidden = talk.isEmpty || find("generated").textContent === "";
}

function showBusy() {
  const running = talk.running;
  const isStopping = running.length > 0 && running.every((turn) => responses.phaseOf(turn)?.kind === "stopping");
  context.show(talk.conversation.path);
  composer.showBusy({ isBusy: talk.isBusy, canStop: running.length > 0, isStopping });
  log.classList.toggle("busy", talk.isBusy);
}

function showShelf() {
  const { title } = talk.conversation;
  document.title = title ? `${title} · ${NAME}` : NAME;
  const conversations = library.list();
  const answering = conversations.filter((conversation) => responses.running(conversation).length > 0);
  shelf.show(conversations, talk.conversation.id, new Set(answering.map(({ id }) => id)));
}

function saveSoon(conversation, wait) {
  if (removed.has(conversation.id)) return;
  unsaved.set(conversation.id, conversation);
  if (wait === 0) return saveAll();
  saving ||= setTimeout(saveAll, wait);
}

/** Says that the browser's storage is full, once for each kind of loss. */
function lost(what) {
  if (!reported.has(what)) toast.tell(text(catalogue, what));
  reported.add(what);
}

function saveAll() {
  clearTimeout(saving);
  saving = 0;
  for (const conversation of unsaved.values()) library.save(conversation);
  unsaved.clear();
  showShelf();
}

/** Returns the object of a conversation that is open or that a running answer writes into; null if there is none. */
function live(id) {
  return id === talk.conversation.id ? talk.conversation : responses.conversation(id);
}

function load(id) {
  return live(id) ?? library.open(id);
}

function open(id) {
  const conversation = load(id);
  if (conversation === null) return startConversation();
  continueInterrupted(conversation);
  show(conversation);
  if (talk.running.length === 0) ahead.opened(conversation);
}

/** Opens a conversation at the turn of a response. */
async function openFound(id, response) {
  open(id);
  const { conversation } = talk;
  if (response === null || conversation.id !== id) return;
  await library.refresh(conversation);
  const turn = conversation.turns.findLast(({ entry }) => entry === response);
  if (turn === undefined || talk.conversation !== conversation) return;
  conversation.chooseBranch(turn);
  talk.showTurn(turn);
}

/** Shows a conversation, with its draft. */
function show(conversation) {
  saveDraft();
  talk.open(conversation);
  queue.show(conversation);
  composer.write(drafts.of(conversation));
  route.show(isNew() ? null : conversation.id);
  shelf.uncover();
  composer.focus();
}

/** Resumes the answers that this window was waiting for when it was reloaded, and follows those of other devices. */
function continueInterrupted(conversation) {
  for (const turn of conversation.turns) {
    if (turn.state !== "open" || responses.phaseOf(turn) !== null) continue;
    if (turn.window !== windowName) {
      if (turn.entry && !turn.unfollowed) responses.follow(turn, conversation);
    } else if (Date.now() - turn.at < STALE_MS) responses.ask(turn, conversation);
    else turn.state = "cancelled";
  }
}

function startConversation() {
  show(new Conversation());
}

function rename(id, title) {
  const conversation = load(id);
  if (conversation === null) return;
  conversation.rename(title);
  library.save(conversation);
  showShelf();
}

/** Sets the title that the model has written, unless the user has named the conversation meanwhile. */
function titled(id, title) {
  const conversation = load(id);
  if (conversation === null || conversation.data.named) return;
  Object.assign(conversation.data, { title, renamed: Date.now() });
  saveSoon(conversation, 0);
}

function remove(id) {
  const conversation = load(id);
  if (conversation === null) return;
  const isOpen = id === talk.conversation.id;
  removed.add(id);
  responses.running(conversation).forEach((turn) => responses.stop(turn));
  unsaved.delete(id);
  queue.clear(conversation);
  library.remove(id);
  if (isOpen) startConversation();
  else showShelf();
  const undo = () => {
    removed.delete(id);
    library.restore(conversation);
    if (isOpen) open(id);
    else showShelf();
  };
  const passed = () => {
    drafts.store(conversation, "");
    library.forget(conversation);
    if (!conversation.data.shared) gateway.deleteResponses(conversation.responses);
  };
  toast.show(text(catalogue, "removed"), text(catalogue, "undo"), undo, passed);
}

/** Leaves a conversation that another window has deleted; what the user was writing becomes a new message. */
function leaveDeleted(conversation) {
  responses.running(conversation).forEach((turn) => responses.stop(turn));
  const words = [queue.draftOf(conversation), composer.text].filter(Boolean).join("\n\n");
  queue.clear(conversation);
  composer.write("");
  startConversation();
  if (words !== "") takeBack(words);
}

function optionsChanged(conversation) {
  if (!talk.isEmpty) saveSoon(conversation, 0);
  ahead.opened(conversation);
}

function imported(found) {
  saveEverything();
  library.add(found.map((data) => new Conversation(data)));
  const stored = library.open(talk.conversation.id);
  if (stored !== null) talk.merge(stored.data);
  showShelf();
}

function submit() {
  const { words } = composer;
  if (words === "") return;
  composer.write("");
  saveDraft();
  if (talk.isBusy) return queue.add(talk.conversation, words);
  ahead.stop();
  titles.stop();
  talk.ask(words);
}

function draftChanged() {
  clearTimeout(draftTimer);
  draftTimer = setTimeout(saveDraft, DRAFT_MS);
  library.typed();
  ahead.draftChanged(talk.conversation, composer.text);
}

function saveDraft() {
  clearTimeout(draftTimer);
  drafts.store(talk.conversation, composer.text);
  library.draftSaved(talk.conversation);
}

function takeBack(words) {
  composer.write([words, composer.text].filter(Boolean).join("\n\n"));
  saveDraft();
  composer.focus();
}

/** Turns the queued messages of a conversation into its draft. */
function takeAllBack(conversation) {
  const words = queue.draftOf(conversation);
  queue.clear(conversation);
  if (words === "") return;
  if (conversation.id === talk.conversation.id) return takeBack(words);
  drafts.store(conversation, [words, drafts.of(conversation)].filter(Boolean).join("\n\n"));
}

/** Saves everything that is not yet in the storage: the page may be about to go. */
function saveEverything() {
  if (isLeaving) return;
  saveDraft();
  queue.conversations.forEach(takeAllBack);
  saveAll();
}

find("new").addEventListener("click", startConversation);
find("sign-out").addEventListener("click", signOut);
find("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment of the address names the conversation
  find("composer").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !isComposing(event)) talk.stop();
});
// Browsers throttle timers in hidden tabs and report changes of the network: both are reasons to check the link at once.
for (const change of ["online", "offline"]) addEventListener(change, () => connection.probe());
document.addEventListener("visibilitychange", () => document.hidden || connection.probe());
addEventListener("pagehide", saveEverything);
// Another window has changed the storage.
addEventListener("storage", ({ key }) => {
  if (key === KEY || key === null) return forget(); // signed in or out, or all data of the site deleted
  const { conversation } = talk;
  if (library.isAbout(conversation.id, key)) {
    const stored = library.open(conversation.id);
    if (stored !== null) talk.merge(stored.data).forEach((turn) => askNext(turn, conversation));
    else if (library.isDeleted(conversation.id)) leaveDeleted(conversation);
  }
  showShelf();
});

find("sign-out").hidden = keyring.key === null;
bindPreferences(find("language"), find("theme"), () => location.reload());
setInterval(watchLoading, LOADING_MS);
composer.write(drafts.of(talk.conversation));
open(route.id ?? own.getItem(OPEN));
connection.connect();
