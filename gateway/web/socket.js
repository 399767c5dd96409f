/** A WebSocket that notices a dead link, reconnects automatically, sends and receives JSON objects, and reports its state. */

const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 15_000;
// A connection that lasted this long resets the reconnection delay. Resetting on every open would flood a server that
// accepts connections and closes them at once.
const STEADY_MS = 5_000;
// Of a link that drops packets, a browser reports nothing for minutes. After this time without a message the gateway is
// asked to answer, and after DEAD_MS more without one the connection is given up: within 10 s in all.
const SILENT_MS = 4_000;
const DEAD_MS = 4_500;
const WATCH_MS = 500;

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
  #startedAt = 0;
  #heardAt = 0;
  #askedAt = null; // when the unanswered ping was sent
  #answersPings = true;
  #refused = false;

  /**
   * @param {string} address of the WebSocket
   * @param {object} handlers
   * @param {(state: "connecting"|"open"|"waiting"|"refused", pause: number) => void} handlers.state `waiting` is the
   *   pause before the next attempt, in milliseconds; after `refused` there is none until `connect` is called
   * @param {(event: object) => void} handlers.event
   * @param {() => string[]} handlers.protocols returns the subprotocols to offer, which
   *   carry the key: a browser cannot send it in another way
   * @param {() => Promise<boolean>} handlers.allowed called when a socket did not open, since browsers
   *   hide the reason
   */
  constructor(address, handlers) {
    this.#address = address;
    this.#handlers = handlers;
    setInterval(() => this.#watch(), WATCH_MS);
  }

  /** Connects now, unless connected or connecting. */
  connect() {
    if (this.#socket !== null) return;
    clearTimeout(this.#timer);
    this.#refused = false;
    this.#handlers.state("connecting", 0);
    const socket = new WebSocket(this.#address, this.#handlers.protocols());
    this.#socket = socket;
    this.#startedAt = performance.now();
    socket.addEventListener("open", () => this.#opened(socket));
    socket.addEventListener("message", ({ data }) => this.#received(socket, data));
    socket.addEventListener("close", ({ reason }) => this.#closed(socket, reason));
  }

  /** Ends the pause and connects at once; does nothing after a refusal, when the user must sign in again. */
  retryNow() {
    if (!this.#refused) this.connect();
  }

  /** Checks at once whether the link is alive, after a hint that it may not be; reconnects if there is none. */
  probe() {
    this.retryNow();
    if (this.#askedAt === null) this.#ping();
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

  #ping() {
    if (!this.#answersPings || !this.send({ type: "samovar.ping" })) return;
    this.#askedAt = performance.now();
  }

  #watch() {
    if (this.#socket === null || document.hidden) return; // a hidden page's timers are late
    const now = performance.now();
    if (this.#socket.readyState === WebSocket.CONNECTING) {
      if (now - this.#startedAt > SILENT_MS + DEAD_MS) this.#giveUp();
    } else if (this.#askedAt !== null) {
      if (now - this.#askedAt > DEAD_MS) this.#giveUp();
    } else if (now - this.#heardAt > SILENT_MS) {
      this.#ping();
    }
  }

  /** Ends a connection without waiting for its close handshake, which a dead link does not complete. */
  #giveUp() {
    const socket = this.#socket;
    socket.close();
    this.#closed(socket, "");
  }

  #opened(socket) {
    if (socket !== this.#socket) return;
    this.#openedAt = this.#heardAt = performance.now();
    this.#askedAt = null;
    this.#answersPings = true;
    this.#handlers.state("open", 0);
  }

  #received(socket, data) {
    if (socket !== this.#socket) return;
    this.#heardAt = performance.now();
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      return; // not JSON: ignored, as unknown events are
    }
    const asked = this.#askedAt !== null;
    this.#askedAt = null; // any message shows that the link is alive
    if (event?.type === "samovar.pong") return;
    // An older gateway refuses the ping.
    if (asked && event?.type === "error" && event.stream_id === undefined) this.#answersPings = false;
    else if (typeof event?.type === "string") this.#handlers.event(event);
  }

  async #closed(socket, reason) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    const lived = this.#openedAt > 0 ? performance.now() - this.#openedAt : 0;
    const wasOpen = this.#openedAt > 0;
    this.#openedAt = 0;
    if (lived > STEADY_MS) this.#delay = FIRST_DELAY_MS;
    // Jitter of up to 25 %, so that not all clients of a restarted gateway reconnect at the same time.
    const pause = this.#delay * (1 + Math.random() / 4);
    this.#handlers.state("waiting", pause);
    if (reason === REVOKED || (!wasOpen && !(await this.#handlers.allowed()))) {
      if (this.#socket !== null) return; // connected in the meantime
      this.#refused = true;
      return this.#handlers.state("refused", 0);
    }
    if (this.#socket !== null) return;
    this.#delay = Math.min(this.#delay * 2, MAX_DELAY_MS);
    this.#timer = setTimeout(() => this.connect(), pause);
  }
}
