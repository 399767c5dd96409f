/** One WebSocket that mends itself: JSON objects in, JSON objects out, and the state it is in. */

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 15_000;
// A connection that lived this long was a good one: the next loss starts from the first delay again. Resetting on
// every open would hammer a server that accepts and at once closes.
const STEADY_MS = 5_000;

/** The WebSocket address of a path beside the page, ws for http and wss for https. */
export function socketAddress(path, base) {
  const address = new URL(path, base);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address.href;
}

export class Connection {
  #address;
  #handlers;
  #socket = null;
  #delay = FIRST_DELAY_MS;
  #timer = 0;
  #openedAt = 0;

  /**
   * @param {string} address of the WebSocket
   * @param {{state: (state: "connecting"|"open"|"waiting") => void, event: (event: object) => void}} handlers
   *   `waiting` is the pause between a loss and the next try
   */
  constructor(address, handlers) {
    this.#address = address;
    this.#handlers = handlers;
  }

  /** Connects now; without effect while a connection is there or being made. */
  connect() {
    if (this.#socket !== null) return;
    clearTimeout(this.#timer);
    this.#handlers.state("connecting");
    const socket = new WebSocket(this.#address);
    this.#socket = socket;
    socket.addEventListener("open", () => this.#opened());
    socket.addEventListener("message", ({ data }) => this.#received(data));
    socket.addEventListener("close", () => this.#closed());
  }

  /** Sends one object; false when there is no connection to send it on. */
  send(request) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(request));
    return true;
  }

  #opened() {
    this.#openedAt = performance.now();
    this.#handlers.state("open");
  }

  #received(data) {
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      return; // not of this protocol; a later server may say more than this page knows
    }
    if (typeof event?.type === "string") this.#handlers.event(event);
  }

  #closed() {
    this.#socket = null;
    if (this.#openedAt > 0 && performance.now() - this.#openedAt > STEADY_MS) this.#delay = FIRST_DELAY_MS;
    this.#openedAt = 0;
    // Up to a quarter at random, so that the readers of a restarted gateway do not all come back at once.
    const pause = this.#delay * (1 + Math.random() / 4);
    this.#delay = Math.min(this.#delay * 2, LONGEST_DELAY_MS);
    this.#timer = setTimeout(() => this.connect(), pause);
    this.#handlers.state("waiting");
  }
}
