/** The sidebar with the list of conversations: open, rename, delete. On a narrow screen it covers the page. */

import { text } from "./i18n.js";
import { focusByKeyboard, isComposing, stamp } from "./ui.js";

const DAY_MS = 86_400_000;
const OLDEST_NAMED_DAY = 7;

/**
 * @typedef {object} Acts
 * @property {(id: string) => void} open
 * @property {(id: string, title: string) => void} rename
 * @property {(id: string) => void} remove
 * @property {() => void} covered called when the sidebar has been opened over the page
 * @property {() => void} uncovered called when it has been closed again
 */

export class Shelf {
  #catalogue;
  #list;
  #acts;
  #shown = ""; // serialized entries of the current list, to rebuild it only after changes
  #wide = matchMedia("(min-width: 60rem)");

  /** @param {Acts} acts */
  constructor(catalogue, list, acts) {
    this.#catalogue = catalogue;
    this.#list = list;
    this.#acts = acts;
    this.#setOpen(this.#wide.matches);
    this.#wide.addEventListener("change", () => this.#setOpen(this.#wide.matches));
    document.getElementById("toggle").addEventListener("click", () => this.#setOpen(!this.isOpen));
    document.getElementById("veil").addEventListener("click", () => this.#setOpen(false));
    document.getElementById("shelf").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.#wide.matches || isComposing(event)) return;
      event.stopPropagation();
      this.#setOpen(false);
      document.getElementById("toggle").focus();
    });
  }

  get isOpen() {
    return document.body.dataset.shelf === "open";
  }

  /** Closes a sidebar that covers the page, after the user has selected a conversation or has gone back. */
  uncover() {
    if (this.isOpen && !this.#wide.matches) this.#setOpen(false);
  }

  /** Shows these conversations, newest first; marks the open one (`current`) and those in `answering`. */
  show(conversations, current, answering) {
    const entries = conversations.map(({ id, title, data }) => ({
      id,
      title: title || text(this.#catalogue, "untitled"),
      day: this.#dayOf(data.changed),
      isCurrent: id === current,
      isAnswering: answering.has(id),
    }));
    const state = JSON.stringify(entries);
    if (state === this.#shown || this.#list.querySelector("input") !== null) return;
    this.#shown = state;
    const focused = this.#list.querySelector(":focus")?.closest(".entry")?.dataset.id;
    this.#list.replaceChildren(...this.#days(entries));
    this.#list.querySelector(`[data-id="${focused}"] .entry-open`)?.focus();
  }

  #setOpen(open) {
    const covers = open && !this.#wide.matches;
    const covered = document.querySelector(".room").inert;
    document.body.dataset.shelf = open ? "open" : "closed";
    document.getElementById("toggle").setAttribute("aria-expanded", String(open));
    document.getElementById("shelf").inert = !open;
    document.querySelector(".room").inert = covers; // keeps the focus in the drawer
    if (covers) focusByKeyboard(document.getElementById("new"));
    if (covers !== covered) (covers ? this.#acts.covered : this.#acts.uncovered)();
  }

  #days(entries) {
    if (entries.length === 0) {
      const nothing = document.createElement("p");
      nothing.className = "shelf-nothing";
      nothing.textContent = text(this.#catalogue, "noConversations");
      return [nothing];
    }
    const days = new Map();
    for (const entry of entries) days.set(entry.day, [...(days.get(entry.day) ?? []), entry]);
    return [...days].flatMap(([day, its]) => {
      const heading = document.createElement("h2");
      heading.className = "shelf-day";
      heading.textContent = day;
      const list = document.createElement("ul");
      list.append(...its.map((entry) => this.#entry(entry)));
      return [heading, list];
    });
  }

  #entry({ id, title, isCurrent, isAnswering }) {
    const entry = stamp(this.#catalogue, "shelf-entry");
    const open = entry.querySelector(".entry-open");
    entry.dataset.id = id;
    entry.dataset.answering = String(isAnswering);
    open.textContent = title;
    open.title = title;
    if (isCurrent) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => this.#acts.open(id));
    const tool = (name) => entry.querySelector(`[data-tool="${name}"]`);
    tool("rename").addEventListener("click", () => this.#rename(entry, id, title));
    tool("remove").addEventListener("click", () => this.#acts.remove(id));
    return entry;
  }

  #rename(entry, id, title) {
    const input = document.createElement("input");
    input.className = "entry-name";
    input.value = title;
    input.maxLength = 200;
    input.setAttribute("aria-label", text(this.#catalogue, "rename"));
    let closed = false;
    const close = (accepted) => {
      if (closed) return; // removing the input also fires `blur`
      closed = true;
      const words = input.value;
      input.remove();
      this.#shown = "";
      this.#acts.rename(id, accepted ? words : title);
    };
    input.addEventListener("keydown", (event) => {
      if (isComposing(event) || !["Enter", "Escape"].includes(event.key)) return;
      event.stopPropagation();
      event.preventDefault();
      close(event.key === "Enter");
    });
    input.addEventListener("blur", () => close(true));
    entry.append(input);
    input.select();
  }

  /** Returns "today", "yesterday", up to seven days ago, then month and year. */
  #dayOf(time) {
    const midnight = new Date().setHours(0, 0, 0, 0);
    const days = Math.ceil((midnight - time) / DAY_MS);
    const { tag } = this.#catalogue;
    if (days <= OLDEST_NAMED_DAY) {
      return new Intl.RelativeTimeFormat(tag, { numeric: "auto" }).format(-Math.max(0, days), "day");
    }
    return new Intl.DateTimeFormat(tag, { year: "numeric", month: "long" }).format(time);
  }
}
