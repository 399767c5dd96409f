/** The box below an answer that has failed: what happened in the reader's words, and a button that tries again. */

import { text } from "./i18n.js";
import { failureOf } from "./outcome.js";
import { stamp } from "./ui.js";

// Transient errors, for which a retry button is shown.
const TRANSIENT = new Set([
  "connection_lost",
  "engine_unavailable",
  "internal_error",
  "queue_full",
  "queue_timeout",
  "rate_limit_exceeded",
  "server_error",
  "store_unavailable",
]);
// Errors by which nothing is broken: the gateway only asks for patience.
const CALM = new Set(["queue_full", "queue_timeout", "rate_limit_exceeded"]);
const REQUEST = /\breq_[0-9a-f]+/;
const SECOND_MS = 1_000;
// Longer waits are shown as a time of the day.
const MAX_COUNTED_SECONDS = 600;

/** Returns the box for an error; `again` is called by its button. The gateway's own words are for developers. */
export function failureBox(catalogue, error, again) {
  const { code = null, message = "", until = 0 } = error;
  const box = stamp(catalogue, "error");
  box.dataset.code = code ?? "";
  box.dataset.calm = String(CALM.has(code));
  box.querySelector(".message-error-what").textContent = failureOf(catalogue, error);
  const [request = ""] = REQUEST.exec(message) ?? [];
  box.querySelector(".message-error-said").textContent = request && text(catalogue, "requestNumber", { request });
  box.querySelector(".message-error-said").hidden = request === "";
  const button = box.querySelector("button");
  button.hidden = !TRANSIENT.has(code);
  button.addEventListener("click", again);
  countDown(catalogue, button, until);
  return box;
}

/** Returns how long to wait: in seconds, or, if nobody would wait so long, until when. */
function waitText(catalogue, number, until) {
  if (number <= MAX_COUNTED_SECONDS) return text(catalogue, "againIn", { number });
  const time = new Intl.DateTimeFormat(catalogue.tag, { hour: "2-digit", minute: "2-digit" }).format(until);
  return text(catalogue, "againAt", { time });
}

/** Disables a button until a time at which the gateway accepts requests again, and shows how long that takes. */
function countDown(catalogue, button, until) {
  const count = () => {
    const number = Math.ceil((until - Date.now()) / SECOND_MS);
    button.disabled = number > 0;
    button.textContent = number > 0 ? waitText(catalogue, number, until) : text(catalogue, "again");
    if (number <= 0) clearInterval(timer);
  };
  const timer = setInterval(count, SECOND_MS);
  count();
}
