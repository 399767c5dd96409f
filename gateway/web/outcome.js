/** Texts about the end of an answer. */

import { errorText, reasonText, text } from "./i18n.js";

/** Returns the remark below an ended answer: why it is not complete; "" if it is. */
export function remarkOf(catalogue, { state, reason = null }) {
  if (state === "open") return text(catalogue, "interrupted");
  if (state === "cancelled") return text(catalogue, "cancelled");
  if (reason === null) return "";
  if (reason === "max_output_tokens") return text(catalogue, "cutAtLimit");
  return text(catalogue, "incomplete", { reason: reasonText(catalogue, reason) });
}

/** Returns what went wrong with a failed answer, in the reader's words. */
export function failureOf(catalogue, { code = null, limit = null }) {
  return limit === "tokens_per_day" ? text(catalogue, "allowanceUsed") : errorText(catalogue, code);
}
