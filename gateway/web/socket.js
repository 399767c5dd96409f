/** A WebSocket that reconnects automatically, sends and receives JSON objects, and reports its state. */

const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 15_000;
// A connection that lasted this long resets the reconnection delay. Resetting on every open would flood a server that
// accepts connections and closes them at once.
const STEADY_MS = 5_000;

/** Returns the WebSocket URL of a path relative to the page: ws for http, wss for https. */
export function socketAddress(path, base) {
  const address = new URL(path, base);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address.href;
}

// Close reason of the gateway: the key was revoked or has expired.
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
   * @param {(state: "connecting"|"open"|"waiting"|"refused") => void} handlers.state `waiting` is the pause before
   *   the next attempt; after `refused` there is none until `connect` is called
   * @param {(event: object) => void} handlers.event
   * @param {() => string[]} handlers.protocols returns the subprotocols to offer, which
   *   carry the key: a browser cannot send it in another way
   * @param {() => Promise<boolean>} handlers.allowed called when a socket did not open, since browsers
   *   hide the reason
   */
  constructor(address, handlers) {
    this.#address = address;
    this.#handlers = handlers;
  }

  /** Connects now, unless connected or connecting. */
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

  /** Ends the pause and connects at once; does nothing after a refusal, when the user must sign in again. */
  retryNow() {
    if (!this.#refused) this.connect();
  }

  /** Closes the connection for good. */
  close() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  /** Closes the connection and opens a new one, for another user. */
  restart() {
    this.close();
    this.#delay = FIRST_DELAY_MS;
    this.connect();
  }

  /** Sends one object; returns false if there is no connection. */
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
      return; // not JSON: ignored, as unknown events are
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
      if (this.#socket !== null) return; // connected in the meantime
      this.#refused = true;
      return this.#handlers.state("refused");
    }
    if (lived > STEADY_MS) this.#delay = FIRST_DELAY_MS;
    // Jitter of up to 25 %, so that not all clients of a restarted gateway reconnect at the same time.
    const pause = this.#delay * (1 + Math.random() / 4);
    this.#delay = Math.min(this.#delay * 2, MAX_DELAY_MS);
    this.#timer = setTimeout(() => this.connect(), pause);
  }
}
