/** The page's wiring: socket ↔ conversation ↔ what is shown. */

import { Conversation } from "./conversation.js";
import { catalogueFor, translate } from "./i18n.js";
import { Connection, socketAddress } from "./socket.js";
import { AnswerView, Follower, fitHeight, isComposing, questionElement, showNotice, showStatus } from "./ui.js";

const catalogue = catalogueFor(navigator.language);
document.documentElement.lang = catalogue.tag;
translate(document, catalogue);

const find = (id) => document.getElementById(id);
const [composer, send, stop, log, hello] = ["composer", "send", "stop", "log", "hello"].map(find);
const follower = new Follower(find("scroll"));

const conversation = new Conversation((request) => connection.send(request), showBusy, () => performance.now());
const connection = new Connection(socketAddress("v1/responses", document.baseURI), {
  state: connectionChanged,
  event: (event) => conversation.receive(event),
});
let wasOpen = false;
let latest = null; // the view of the newest answer

function connectionChanged(state) {
  if (state === "open") {
    wasOpen = true;
    conversation.connected();
    showModel();
  } else if (state === "waiting") {
    conversation.lost();
  }
  showStatus(catalogue, find("status"), state, wasOpen);
}

/** Asked on every connection: the gateway may have come back with another model. */
async function showModel() {
  try {
    const answer = await fetch(new URL("v1/models", document.baseURI));
    if (!answer.ok) return;
    const [model] = (await answer.json()).data;
    find("model").textContent = model.id;
    find("model").hidden = false;
    // No language at all means a model that nobody described: no claim about it.
    showNotice(catalogue, find("notice"), model.languages?.length > 0 && !model.languages.includes("zh"));
  } catch {
    // The socket tells the reader whether the gateway is there; the name is asked again with the next connection.
  }
}

function showBusy() {
  stop.hidden = !conversation.busy;
  stop.disabled = conversation.stopping;
  send.hidden = conversation.busy;
  send.disabled = composer.value.trim() === "";
}

function ask(words) {
  const view = new AnswerView(catalogue, () => follower.grown(), () => {
    view.element.remove();
    ask(words);
    focusComposer();
  });
  latest?.settle();
  latest = view;
  log.append(view.element);
  follower.catchUp();
  conversation.ask(words, view);
}

function submit() {
  const words = composer.value.trim();
  if (words === "" || conversation.busy) return;
  hello.hidden = true;
  log.append(questionElement(catalogue, words));
  write("");
  ask(words);
}

function startAnew() {
  conversation.reset();
  latest = null;
  log.replaceChildren();
  hello.hidden = false;
  focusComposer();
}

function write(words) {
  composer.value = words;
  fitHeight(composer);
  showBusy();
}

/** A button that hides takes the focus with it. Not by touch: there the focus would bring up the keyboard. */
function focusComposer() {
  if (matchMedia("(pointer: fine)").matches) composer.focus();
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
  focusComposer();
});
stop.addEventListener("click", () => {
  conversation.stop();
  focusComposer();
});
find("new").addEventListener("click", startAnew);
composer.addEventListener("input", () => write(composer.value));
composer.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !isComposing(event)) conversation.stop();
});
// No waiting for the next try when the network or the reader is back: timers hardly run in a hidden tab.
addEventListener("online", () => connection.connect());
document.addEventListener("visibilitychange", () => document.hidden || connection.connect());

write(composer.value); // a browser may have kept what was written before a reload
connection.connect();
