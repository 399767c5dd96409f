/** The address of the page: the open conversation, in the fragment, and the drawer, as an entry of the history. */

const PREFIX = "#c/";

export class Route {
  #acts;
  #shown = null; // id of the conversation that the page shows

  /**
   * @param {object} acts
   * @param {(id: string|null) => void} acts.open called when the user goes to another address; null: a new conversation
   * @param {() => void} acts.closeDrawer called when the user goes back from the open drawer
   */
  constructor(acts) {
    this.#acts = acts;
    addEventListener("popstate", () => this.#changed());
  }

  /** Id of the conversation in the address; null if there is none. */
  get id() {
    return location.hash.startsWith(PREFIX) ? decodeURIComponent(location.hash.slice(PREFIX.length)) : null;
  }

  /** Shows the address of a conversation (null: of a new one); `replace` corrects the present address. */
  show(id, replace = false) {
    this.#shown = id;
    if (id === this.id && !this.#isDrawer) return;
    const address = id === null ? location.pathname + location.search : PREFIX + encodeURIComponent(id);
    // The entry of the drawer, in which a conversation was chosen, becomes that of the conversation.
    if (replace || this.#isDrawer || id === this.id) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
  }

  /** Adds an entry for the open drawer, so that the back button closes it. */
  openDrawer() {
    if (!this.#isDrawer) history.pushState({ drawer: true }, "");
  }

  /** Removes the entry of a drawer that was closed in another way. */
  closeDrawer() {
    if (this.#isDrawer) history.back();
  }

  get #isDrawer() {
    return history.state?.drawer === true;
  }

  #changed() {
    this.#acts.closeDrawer();
    if (!this.#isDrawer && this.id !== this.#shown) this.#acts.open(this.id);
  }
}
