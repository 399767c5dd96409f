/** What the user has set for one conversation: instructions and sampling. The model's own values apply to the rest. */

/** The numbers that can be set, with their limits at the gateway. */
export const SAMPLING = {
  temperature: { min: 0, max: 2, step: 0.1 },
  top_p: { min: 0, max: 1, step: 0.05 },
  max_output_tokens: { min: 1, max: 100_000, step: 1 },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
};
export const LONGEST_INSTRUCTIONS = 8_000;

/** Returns the valid part of `options`, which may come from a file. */
export function checkedOptions(options) {
  const checked = {};
  const instructions = typeof options?.instructions === "string" ? options.instructions.trim() : "";
  if (instructions !== "") checked.instructions = instructions.slice(0, LONGEST_INSTRUCTIONS);
  for (const [name, { min, max, step }] of Object.entries(SAMPLING)) {
    const value = options?.[name];
    if (typeof value !== "number" || !(value >= min && value <= max)) continue;
    checked[name] = step === 1 ? Math.round(value) : value;
  }
  return checked;
}

/** Returns the fields of requests in this conversation. */
export function optionsOf(conversation) {
  return checkedOptions(conversation.data.options);
}

/** Returns the fields on which the prompt depends: requests that prepare the prompt need no others. */
export function promptOptionsOf(conversation) {
  const { instructions } = optionsOf(conversation);
  return instructions === undefined ? {} : { instructions };
}

/** Sets the options of a conversation; of several windows, the last one counts. */
export function setOptions(conversation, options) {
  conversation.data.options = { ...checkedOptions(options), at: Date.now() };
}
