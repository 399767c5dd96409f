/** The choice between the two languages, and what fills the page with one of them. */

import { chinese } from "./chinese.js";
import { english } from "./english.js";

/** Both languages, for what is shown in both whatever the reader's own is. */
export const catalogues = { en: english, zh: chinese };

/** The catalogue for a BCP 47 tag: Chinese for every `zh`, else English. */
export function catalogueFor(tag) {
  return /^zh\b/i.test(tag ?? "") ? chinese : english;
}

/** A text of the catalogue; one that is a function is given `values`. */
export function text(catalogue, key, values = {}) {
  const entry = catalogue[key];
  return typeof entry === "function" ? entry(values) : entry;
}

/** What an error code means to the reader. */
export function errorText(catalogue, code) {
  return Object.hasOwn(catalogue.errors, code) ? catalogue.errors[code] : catalogue.errors.unknown;
}

const attributes = { i18nLabel: "aria-label", i18nTitle: "title", i18nPlaceholder: "placeholder" };

/** Fills all elements below `root` that carry a `data-i18n…` key. */
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
