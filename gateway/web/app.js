/** The page's wiring: socket ↔ answers ↔ the open conversation ↔ what the browser keeps. */

import { Ahead } from "./ahead.js";
import { Conversation, newId } from "./conversation.js";
import { Gateway } from "./gateway.js";
import { catalogueFor, text, translate } from "./i18n.js";
import { Keyring } from "./keyring.js";
import { Library, storageOf } from "./library.js";
import { Responses } from "./responses.js";
import { Shelf } from "./shelf.js";
import { SignIn } from "./signin.js";
import { Connection, socketAddress } from "./socket.js";
import { Talk } from "./talk.js";
import { Follower, Toast, fitHeight, focusByKeyboard, isComposing, showNotice, showStatus } from "./ui.js";

// While words arrive they are kept this often: a browser that crashes loses no more.
const SAVE_MS = 1_000;
// An answer that a reload interrupted is asked for again, unless the reader has been away for longer than this.
const STALE_MS = 600_000;
// So many answers are on their way at once; the gateway has 16 places for one connection.
const LANES = Array.from({ length: 8 }, (_, number) => `answer-${number}`);
const OPEN = "samovar.open"; // key of the conversation that this window shows
const WINDOW = "samovar.window"; // key of this window's own name

const catalogue = catalogueFor(navigator.language);
document.documentElement.lang = catalogue.tag;
translate(document, catalogue);

const find = (id) => document.getElementById(id);
const [composer, send, stop, log, hello] = ["composer", "send", "stop", "log", "hello"].map(find);

const own = storageOf("sessionStorage");
if (own.getItem(WINDOW) === null) own.setItem(WINDOW, newId());
const windowName = own.getItem(WINDOW);
const lasting = storageOf("localStorage");
const keyring = new Keyring(lasting, own);
const gateway = new Gateway(() => keyring.key);
let library = new Library(lasting, keyring.scope);
const toast = new Toast(find("toast"));
const responses = new Responses((request) => connection.send(request), told, () => performance.now(), LANES);
const talk = new Talk(catalogue, log, new Follower(find("scroll")), responses, windowName, changed);
const shelf = new Shelf(catalogue, find("conversations"), { open, rename, remove });
const ahead = new Ahead((request) => connection.send(request));
const signIn = new SignIn(catalogue, find("sign-in"), (key) => gateway.accepts(key), signedIn);
const connection = new Connection(socketAddress("v1/responses", document.baseURI), {
  state: connectionChanged,
  event: (event) => ahead.receive(event) || responses.receive(event),
  protocols: () => keyring.protocols,
  allowed: async () => (await gateway.accepts(keyring.key)) !== false,
});
let wasOpen = false;
let knowsNoChinese = false; // as far as the model says
const unsaved = new Map(); // conversation id → conversation whose words are not all kept yet
const removed = new Set(); // ids whose answers may still be ending
let saving = 0;

function connectionChanged(state) {
  if (state === "open") {
    wasOpen = true;
    signIn.close();
    responses.connected();
    learn();
  } else if (state === "waiting") {
    responses.lost();
    ahead.lost();
  } else if (state === "refused") {
    signIn.open(keyring.key === null ? "" : "keyRefused");
  }
  showStatus(catalogue, find("status"), state, wasOpen);
}

/** Asked on every connection: the gateway may have come back with another model, or other settings. */
async function learn() {
  const [page, model] = await Promise.all([gateway.page(), gateway.model()]);
  ahead.allowed = page.encode_ahead === true;
  if (talk.running.length === 0) ahead.opened(talk.conversation);
  find("model").hidden = model === null;
  if (model === null) return;
  find("model").textContent = model.id;
  // No language at all means a model that nobody described: no claim about it.
  knowsNoChinese = model.languages?.length > 0 && !model.languages.includes("zh");
  showNotice(catalogue, find("notice"), talk.isEmpty && knowsNoChinese);
}

function signedIn(key, options) {
  keyring.keep(key, options);
  become();
  library.adopt();
  showShelf();
}

function signOut() {
  keyring.forget();
  become();
}

/** Shows what belongs to whoever is signed in now, and connects as them. */
function become() {
  saveAll();
  responses.abandon();
  library = new Library(lasting, keyring.scope);
  find("sign-out").hidden = keyring.key === null;
  startAnew();
  connection.restart();
}

/** What became of a turn, be its conversation open or not. */
function told(turn, phase, conversation) {
  if (conversation.id === talk.conversation.id) talk.told(turn, phase);
  if (phase.kind === "ended") conversation.touch();
  saveSoon(conversation, phase.kind === "more" ? SAVE_MS : 0);
  showBusy();
}

function changed(edited) {
  own.setItem(OPEN, talk.conversation.id);
  if (edited) saveSoon(talk.conversation, 0);
  hello.hidden = !talk.isEmpty;
  showNotice(catalogue, find("notice"), talk.isEmpty && knowsNoChinese);
  showBusy();
  showShelf();
}

function showBusy() {
  const running = talk.running;
  stop.hidden = running.length === 0;
  stop.disabled = running.length > 0 && running.every((turn) => responses.phaseOf(turn)?.kind === "stopping");
  send.hidden = running.length > 0;
  send.disabled = composer.value.trim() === "";
  log.classList.toggle("busy", running.length > 0);
}

function showShelf() {
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

function saveAll() {
  clearTimeout(saving);
  saving = 0;
  for (const conversation of unsaved.values()) library.save(conversation);
  unsaved.clear();
  showShelf();
}

/** The conversation of this id, the very object that an answer on its way writes into. */
function load(id) {
  if (id === talk.conversation.id) return talk.conversation;
  return responses.conversation(id) ?? library.open(id);
}

function open(id) {
  const conversation = load(id);
  if (conversation === null) return startAnew();
  continueInterrupted(conversation);
  talk.open(conversation);
  if (talk.running.length === 0) ahead.opened(conversation);
  shelf.chosen();
  focusByKeyboard(composer);
}

/** Goes on with an answer that this very window was waiting for when it was reloaded. */
function continueInterrupted(conversation) {
  for (const turn of conversation.turns) {
    if (turn.state !== "open" || responses.phaseOf(turn) !== null || turn.window !== windowName) continue;
    if (Date.now() - turn.at < STALE_MS) responses.ask(turn, conversation);
    else turn.state = "cancelled";
  }
}

function startAnew() {
  talk.open(new Conversation());
  shelf.chosen();
  focusByKeyboard(composer);
}

function rename(id, title) {
  const conversation = load(id);
  if (conversation === null) return;
  conversation.rename(title);
  library.save(conversation);
  showShelf();
}

function remove(id) {
  const conversation = load(id);
  if (conversation === null) return;
  const isOpen = id === talk.conversation.id;
  removed.add(id);
  responses.running(conversation).forEach((turn) => responses.stop(turn));
  unsaved.delete(id);
  library.remove(id);
  if (isOpen) startAnew();
  else showShelf();
  const undo = () => {
    removed.delete(id);
    library.save(conversation);
    if (isOpen) open(id);
    else showShelf();
  };
  toast.show(text(catalogue, "removed"), text(catalogue, "undo"), undo, () => gateway.forget(conversation.responses));
}

function submit() {
  const words = composer.value.trim();
  if (words === "" || talk.running.length > 0) return;
  ahead.stop();
  write("");
  talk.ask(words);
}

function write(words) {
  composer.value = words;
  fitHeight(composer);
  showBusy();
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
  focusByKeyboard(composer);
});
stop.addEventListener("click", () => {
  talk.stop();
  focusByKeyboard(composer);
});
find("new").addEventListener("click", startAnew);
find("sign-out").addEventListener("click", signOut);
composer.addEventListener("input", () => {
  write(composer.value);
  ahead.drafted(talk.conversation, composer.value);
});
composer.addEventListener("keydown", (event) => {
  if (isComposing(event)) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && composer.value === "" && talk.running.length === 0) {
    event.preventDefault();
    talk.editLast();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !isComposing(event)) talk.stop();
});
// No waiting for the next try when the network or the reader is back: timers hardly run in a hidden tab.
addEventListener("online", () => connection.hurry());
document.addEventListener("visibilitychange", () => document.hidden || connection.hurry());
addEventListener("pagehide", saveAll);
// Another window has changed something.
addEventListener("storage", ({ key }) => {
  const { conversation } = talk;
  const kept = library.isAbout(conversation.id, key) ? library.open(conversation.id) : null;
  if (kept !== null) talk.merge(kept.data);
  showShelf();
});

find("sign-out").hidden = keyring.key === null;
write(composer.value); // a browser may have kept what was written before a reload
open(own.getItem(OPEN));
connection.connect();
