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

// The gateway's word for it: the key was revoked, or has run out.
const REVOKED = "invalid_api_key";

export class Connection {
  #address;
  #handlers;
  #socket = null;
  #delay = FIRST_DELAY_MS;
  #timer = 0;
  #openedAt = 0;
  #refused = false;

  /**
   * @param {string} address of the WebSocket
   * @param {object} handlers
   * @param {(state: "connecting"|"open"|"waiting"|"refused") => void} handlers.state `waiting` is the pause between a
   *   loss and the next try; after `refused` there is none until `connect` is called
   * @param {(event: object) => void} handlers.event
   * @param {() => string[]} handlers.protocols to offer: a browser can send a key in no other way
   * @param {() => Promise<boolean>} handlers.allowed asked when a socket did not open: a browser does not tell why
   */
  constructor(address, handlers) {
    this.#address = address;
    this.#handlers = handlers;
  }

  /** Connects now; without effect while a connection is there or being made. */
  connect() {
    if (this.#socket !== null) return;
    clearTimeout(this.#timer);
    this.#refused = false;
    this.#handlers.state("connecting");
    const socket = new WebSocket(this.#address, this.#handlers.protocols());
    this.#socket = socket;
    socket.addEventListener("open", () => this.#opened(socket));
    socket.addEventListener("message", ({ data }) => this.#received(socket, data));
    socket.addEventListener("close", (event) => this.#closed(socket, event));
  }

  /** Tries at once instead of at the end of a pause; not after a refusal, which only the reader can mend. */
  hurry() {
    if (!this.#refused) this.connect();
  }

  /** Connects anew, as somebody else. */
  restart() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#delay = FIRST_DELAY_MS;
    this.connect();
  }

  /** Sends one object; false when there is no connection to send it on. */
  send(request) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(request));
    return true;
  }

  #opened(socket) {
    if (socket !== this.#socket) return;
    this.#openedAt = performance.now();
    this.#handlers.state("open");
  }

  #received(socket, data) {
    if (socket !== this.#socket) return;
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      return; // not of this protocol; a later server may say more than this page knows
    }
    if (typeof event?.type === "string") this.#handlers.event(event);
  }

  async #closed(socket, { reason }) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    const lived = this.#openedAt > 0 ? performance.now() - this.#openedAt : 0;
    const wasOpen = this.#openedAt > 0;
    this.#openedAt = 0;
    this.#handlers.state("waiting");
    if (reason === REVOKED || (!wasOpen && !(await this.#handlers.allowed()))) {
      if (this.#socket !== null) return; // while it was asked, somebody connected
      this.#refused = true;
      return this.#handlers.state("refused");
    }
    if (lived > STEADY_MS) this.#delay = FIRST_DELAY_MS;
    // Up to a quarter at random, so that the readers of a restarted gateway do not all come back at once.
    const pause = this.#delay * (1 + Math.random() / 4);
    this.#delay = Math.min(this.#delay * 2, LONGEST_DELAY_MS);
    this.#timer = setTimeout(() => this.connect(), pause);
  }
}
