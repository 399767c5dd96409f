/** Renders Markdown. Text of a model is untrusted: raw HTML is shown as text, and the result is sanitized. */

import { extensions, showFormulas } from "./mathematics.js";
import { splitThoughts } from "./thoughts.js";
import createPurifier from "./vendor/dompurify.js";
import { Marked } from "./vendor/marked.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    ...["a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "strong"],
    ...["sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ],
  ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const FORMULA = /^math-(?:inline|block)$/;
// Tags that models write where Markdown has no mark; they carry no attributes.
const TAGS = /&#60;(\/?(?:sub|sup)|br ?\/?)&#62;/gi;
// Elements that get the direction of their own text: answers may mix languages.
const DIRECTED = "p, li, blockquote, h3, h4, h5, h6, td, th, ul, ol";
const LANGUAGE = /^language-([\w+#.-]{1,24})$/;
// Headings in answers start below the page's own two levels.
const DEEPER = 2;

const purifier = createPurifier(window);
purifier.addHook("afterSanitizeAttributes", (element) => {
  if (element.localName === "a") {
    element.target = "_blank";
    element.rel = "noopener noreferrer nofollow";
  }
  const isKnown = LANGUAGE.test(element.className) || FORMULA.test(element.className);
  if (element.localName !== "code" || !isKnown) element.removeAttribute("class");
});

const marked = new Marked({
  gfm: true,
  breaks: true, // line breaks of a model are intended: verses, addresses, steps
  extensions,
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(depth + DEEPER, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    html({ text, block }) {
      const shown = escape(text.trim()).replace(TAGS, "<$1>");
      return block ? `<p>${shown}</p>` : shown;
    },
    // Loading an external image would leak information about the conversation to its server: show a link instead.
    image({ href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
    checkbox({ checked }) {
      return checked ? "☑ " : "☐ ";
    },
  },
});

function escape(text) {
  return text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

/** Shows a growing answer, with a model's thoughts folded. Unchanged blocks keep their elements, and with them the user's selection. */
export class MarkdownView {
  #element;
  #frames;
  #decorate;
  #thoughts = null; // {element, view}
  #blocks = []; // {raw, nodes}, in order

  /**
   * @param {HTMLElement} element to fill
   * @param {object} frames
   * @param {(pre: HTMLPreElement, language: string) => Element} frames.code returns the element that wraps a code block
   * @param {() => HTMLDetailsElement} frames.thoughts returns the element that folds the model's thoughts
   */
  constructor(element, frames) {
    this.#element = element;
    this.#frames = frames;
    this.#decorate = (root) => decorate(root, frames.code);
  }

  /** Shows this text instead of the previous one. */
  show(text) {
    const { thoughts, answer } = splitThoughts(text);
    this.#showThoughts(thoughts);
    this.#showBlocks(answer);
  }

  #showThoughts(thoughts) {
    if (!thoughts) {
      this.#thoughts?.element.remove();
      this.#thoughts = null;
      return;
    }
    if (this.#thoughts === null) {
      const element = this.#frames.thoughts();
      this.#thoughts = { element, view: new MarkdownView(element.querySelector("div"), this.#frames) };
      this.#element.prepend(element);
    }
    this.#thoughts.view.#showBlocks(thoughts);
  }

  #showBlocks(text) {
    const tokens = lex(text);
    let same = 0;
    while (same < this.#blocks.length && this.#blocks[same].raw === tokens[same]?.raw) same += 1;
    for (const { nodes } of this.#blocks.splice(same)) nodes.forEach((node) => node.remove());
    for (const token of tokens.slice(same)) {
      const root = document.createElement("div");
      root.append(render(token));
      this.#decorate(root);
      const nodes = [...root.childNodes];
      this.#element.append(...nodes);
      this.#blocks.push({ raw: token.raw, nodes });
    }
  }
}

/** Returns the text of Markdown without its marks. */
export function plainText(markdown) {
  const root = document.createElement("div");
  for (const token of lex(markdown)) root.append(render(token));
  return root.textContent.replace(/\s+/g, " ").trim();
}

/** Returns the top-level blocks. Text nested too deeply for the browser's stack becomes one plain paragraph. */
function lex(text) {
  try {
    return marked.lexer(text);
  } catch {
    return [{ type: "plain", raw: text }];
  }
}

function render(token) {
  if (token.type !== "plain") {
    try {
      return purifier.sanitize(marked.parser([token]), ALLOWED);
    } catch {
      // as above: nested too deeply
    }
  }
  const paragraph = document.createElement("p");
  paragraph.textContent = token.raw;
  return paragraph;
}

function decorate(root, frame) {
  showFormulas(root);
  for (const element of root.querySelectorAll(DIRECTED)) element.dir = "auto";
  for (const pre of root.querySelectorAll("pre")) {
    const place = document.createComment("");
    pre.replaceWith(place);
    place.replaceWith(frame(pre, LANGUAGE.exec(pre.querySelector("code")?.className ?? "")?.[1] ?? ""));
  }
  for (const table of root.querySelectorAll("table")) {
    const wide = document.createElement("div");
    wide.className = "wide"; // scrolls separately: a phone is narrower than most tables
    wide.tabIndex = 0;
    table.replaceWith(wide);
    wide.append(table);
  }
}
