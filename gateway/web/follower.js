/** Scrolls with the newest text until the user scrolls up. */

// Distance to the end at which a user who scrolls down has reached it.
const AT_END_PX = 8;
const DRAG_PX = 6;
const UPWARD_KEYS = new Set(["ArrowUp", "PageUp", "Home"]);

export class Follower {
  #scroller;
  #button;
  #following = true;
  #top = 0;
  #touchedAt = 0; // where the finger touched the screen

  /** @param {HTMLElement} scroller @param {HTMLElement} button leads to the newest text; shown while it is out of view */
  constructor(scroller, button) {
    this.#scroller = scroller;
    this.#button = button;
    scroller.addEventListener("scroll", () => this.#scrolled());
    // A growing text may move the view before the `scroll` event of the user's own movement: notice its beginning.
    scroller.addEventListener("wheel", ({ deltaY }) => deltaY < 0 && this.#leave(), { passive: true });
    scroller.addEventListener("touchstart", ({ touches }) => (this.#touchedAt = touches[0].clientY), { passive: true });
    scroller.addEventListener("touchmove", ({ touches }) => this.#dragged(touches[0].clientY), { passive: true });
    scroller.addEventListener("keydown", ({ key, target }) => target === scroller && UPWARD_KEYS.has(key) && this.#leave());
    button.addEventListener("click", () => this.catchUp());
    new ResizeObserver(() => this.grown()).observe(scroller); // a phone's keyboard, a growing composer
  }

  /** To be called after the log grew. */
  grown() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#show();
  }

  /** Scrolls to the end. */
  catchUp() {
    this.#following = true;
    this.grown();
  }

  /** Scrolls to an element, and stays there. */
  lookAt(element) {
    this.#following = false;
    element?.scrollIntoView();
    this.#show();
  }

  /** Does some work that replaces the log without moving what the user reads. */
  keepPlace(work) {
    const { scrollTop } = this.#scroller;
    work();
    if (!this.#following) this.#scroller.scrollTop = scrollTop;
    this.grown();
  }

  /** Does some work that adds text above without moving what the user reads. */
  keepDistance(work) {
    const before = this.#scroller.scrollHeight - this.#scroller.scrollTop;
    work();
    this.#scroller.scrollTop = this.#scroller.scrollHeight - before;
    this.#top = this.#scroller.scrollTop;
  }

  get #isAtEnd() {
    return this.#scroller.scrollHeight - this.#scroller.scrollTop - this.#scroller.clientHeight < AT_END_PX;
  }

  #scrolled() {
    const { scrollTop } = this.#scroller;
    if (this.#isAtEnd) this.#following = true;
    else if (scrollTop < this.#top) this.#following = false;
    this.#top = scrollTop;
    this.#show();
  }

  /** A finger that moves down draws earlier text into view; less than DRAG_PX is a tremble. */
  #dragged(position) {
    if (position - this.#touchedAt > DRAG_PX) this.#leave();
  }

  #leave() {
    if (this.#scroller.scrollTop > 0) this.#following = false;
  }

  #show() {
    this.#button.hidden = this.#following || this.#isAtEnd;
  }
}
