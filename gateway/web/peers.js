/** Other windows of this browser that show the page. */

const CHANNEL = "samovar";
// Windows answer at once, also hidden ones: unlike timers, messages are not throttled.
const ANSWER_MS = 1_000;

export class Peers {
  #channel = new BroadcastChannel(CHANNEL);
  #asked = new Map(); // window → function to call with its answer

  /** @param {string} own id of this window */
  constructor(own) {
    this.#channel.addEventListener("message", ({ data }) => {
      if (data.asks === own) this.#channel.postMessage({ answers: own });
      if (data.answers !== undefined) this.#asked.get(data.answers)?.(true);
    });
  }

  /** Returns whether the window of this id is open. */
  async isOpen(window) {
    const answer = new Promise((resolve) => {
      this.#asked.set(window, resolve);
      setTimeout(() => resolve(false), ANSWER_MS);
    });
    this.#channel.postMessage({ asks: window });
    return answer;
  }
}
