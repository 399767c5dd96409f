/** Selection of the language, and translation of the page. */

/** Loads the catalogue for a BCP 47 tag: Chinese in the script of its region, otherwise English. */
export async function catalogueFor(tag) {
  if (!/^zh\b/i.test(tag ?? "")) return (await import("./english.js")).english;
  const isTraditional = /-(?:Hant|TW|HK|MO)\b/i.test(tag) && !/-Hans\b/i.test(tag);
  return isTraditional ? (await import("./traditional.js")).traditional : (await import("./chinese.js")).chinese;
}

/** Returns a text of the catalogue, with `values` in its fields. */
export function text(catalogue, key, values = {}) {
  const entry = catalogue[key];
  return typeof entry === "function" ? entry(values) : entry;
}

/** Returns the explanation of an error code. */
export function errorText(catalogue, code) {
  return Object.hasOwn(catalogue.errors, code) ? catalogue.errors[code] : catalogue.errors.unknown;
}

/** Returns the explanation of an answer's `incomplete_details.reason`. */
export function reasonText(catalogue, reason) {
  return Object.hasOwn(catalogue.reasons, reason) ? catalogue.reasons[reason] : catalogue.reasons.unknown;
}

const attributes = { i18nLabel: "aria-label", i18nTitle: "title", i18nPlaceholder: "placeholder" };

/** Fills all elements below `root` that have a `data-i18n…` key. */
export function translate(root, catalogue) {
  for (const element of root.querySelectorAll("[data-i18n]")) {
    element.textContent = text(catalogue, element.dataset.i18n);
  }
  for (const [key, attribute] of Object.entries(attributes)) {
    const dashed = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    for (const element of root.querySelectorAll(`[data-${dashed}]`)) {
      element.setAttribute(attribute, text(catalogue, element.dataset[key]));
    }
  }
}
