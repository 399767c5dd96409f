/** The user's choices of language and colours, stored in this browser. */

import { storageOf } from "./library.js";

const LANGUAGE = "samovar.language";
const THEME = "samovar.theme"; // read by theme.js, too
const AUTOMATIC = "auto";

const storage = storageOf("localStorage");

/** Returns the BCP 47 tag of the language that the user has chosen, or that of the browser. */
export function preferredLanguage() {
  return storage.getItem(LANGUAGE) ?? navigator.language;
}

/**
 * Connects two choices with the storage.
 *
 * @param {HTMLSelectElement} languages @param {HTMLSelectElement} themes
 * @param {() => void} languageChanged called when the page must be shown in another language
 */
export function bindPreferences(languages, themes, languageChanged) {
  bind(languages, LANGUAGE, languageChanged);
  bind(themes, THEME, (theme) => {
    if (theme === AUTOMATIC) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  });
}

function bind(select, key, changed) {
  select.value = storage.getItem(key) ?? AUTOMATIC;
  select.addEventListener("change", () => {
    if (select.value === AUTOMATIC) storage.removeItem(key);
    else storage.setItem(key, select.value);
    changed(select.value);
  });
}
