/** Names of models for readers. */

// Parts of a file's name that tell how the weights are stored: for the operator.
const STORAGE = /[-_.](?:gguf|i?q\d\w*|f16|f32|bf16|mxfp4)$/i;
const SIZE = /^\d[\d.]*[bm]$/i; // such as 0.5b or 135m

/** Returns the name of a model for readers: `qwen2.5-0.5b-instruct-q4_k_m` is Qwen2.5 0.5B Instruct. */
export function displayName({ id, display_name: given = "" }) {
  if (given) return given;
  let name = id;
  while (STORAGE.test(name)) name = name.replace(STORAGE, "");
  return name.split("-").filter(Boolean).map(capitalized).join(" ") || id;
}

function capitalized(word) {
  return SIZE.test(word) ? word.toUpperCase() : word.charAt(0).toUpperCase() + word.slice(1);
}
