/** Formulas in LaTeX, shown as MathML. The library that translates them is loaded with the first formula. */

import createPurifier from "./vendor/dompurify.js";

const LIBRARY = new URL("vendor/temml.js", import.meta.url);
// Formulas of a model are untrusted, and so is what a library makes of them.
const ALLOWED = {
  USE_PROFILES: { mathMl: true },
  FORBID_ATTR: ["href", "xlink:href", "id", "style"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const MAX_CHARACTERS = 4_000;
// Forms of a formula: in a line, or as a block of its own. Of dollars, only pairs that enclose no white space at their
// inner sides and are not followed by a digit: the others are prices.
const INLINE = /^(?:\\\(([\s\S]+?)\\\)|\$\$([^$]+?)\$\$|\$(?![\s$])((?:\\.|[^\\$\n])+?)(?<!\s)\$(?![\d$]))/;
const BLOCK = /^ {0,3}(?:\\\[([\s\S]+?)\\\]|\$\$([^$]+?)\$\$)[ \t]*(?:\n+|$)/;
// The Content-Security-Policy forbids inline styles, and parsing one is already reported. They only fine-tune.
const STYLES = / style="[^"]*"/g;
const START = /\\\(|\\\[|\$/;

const purifier = createPurifier(window);
let library = null; // promise of the library

/** Extensions of marked that read formulas into `<code class="math-…">`. */
export const extensions = [
  {
    name: "mathBlock",
    level: "block",
    start: (source) => source.match(/(?:^|\n) {0,3}(?:\\\[|\$\$)/)?.index,
    tokenizer: (source) => token("mathBlock", BLOCK.exec(source)),
    renderer: ({ formula }) => `<p><code class="math-block">${escape(formula)}</code></p>\n`,
  },
  {
    name: "mathInline",
    level: "inline",
    start: (source) => source.match(START)?.index,
    tokenizer: (source) => token("mathInline", INLINE.exec(source) ?? /^\\\[([\s\S]+?)\\\]/.exec(source)),
    renderer: ({ formula }) => `<code class="math-inline">${escape(formula)}</code>`,
  },
];

/** Shows the formulas below an element, at once if the library is loaded; until then, and if it fails, as LaTeX. */
export function showFormulas(root) {
  for (const element of root.querySelectorAll("code.math-inline, code.math-block")) {
    if (element.textContent.length > MAX_CHARACTERS) continue;
    if (window.temml) showFormula(element);
    else load().then(() => showFormula(element), () => {}); // without the library, the text stays
  }
}

function token(type, match) {
  if (match === null) return undefined;
  return { type, raw: match[0], formula: match.slice(1).find((group) => group !== undefined).trim() };
}

function showFormula(element) {
  const displayMode = element.className === "math-block";
  let markup;
  try {
    markup = window.temml.renderToString(element.textContent, { displayMode, throwOnError: true, maxExpand: 200 });
  } catch {
    return; // not LaTeX: it stays as it is
  }
  const formula = document.createElement(displayMode ? "div" : "span");
  formula.className = element.className;
  formula.title = element.textContent;
  formula.append(purifier.sanitize(markup.replace(STYLES, ""), ALLOWED));
  (displayMode && element.parentElement?.localName === "p" ? element.parentElement : element).replaceWith(formula);
}

function load() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = LIBRARY;
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => {
      library = null; // the next formula tries again
      reject(new Error("the library for formulas did not load"));
    });
    document.head.append(script);
  });
  return library;
}

function escape(text) {
  return text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}
