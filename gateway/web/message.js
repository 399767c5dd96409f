/** Display of one turn: the question, and the answer while it waits, arrives and ends. */

import { LONG_CHARACTERS } from "./chips.js";
import { failureBox } from "./failure.js";
import { text } from "./i18n.js";
import { MarkdownView } from "./markdown.js";
import { remarkOf } from "./outcome.js";
import { splitThoughts } from "./thoughts.js";
import { copyOnClick, fitHeight, isComposing, stamp } from "./ui.js";
import { Waiting } from "./waiting.js";

/**
 * @typedef {object} Acts callbacks of a turn
 * @property {(question: string) => void} edit replaces the question
 * @property {() => void} again regenerates the answer
 * @property {(step: number) => void} step shows the previous (-1) or next (1) version
 * @property {() => boolean} isLoading returns whether the model is not loaded yet
 * @property {() => void} grown called when the turn may have become taller
 */

export class TurnView {
  #catalogue;
  #turn;
  #acts;
  #versions;
  #question;
  #answer;
  #words;
  #text;
  #wait;
  #frame = 0; // pending animation frame that draws the newest text

  /**
   * @param {object} catalogue of texts
   * @param {object} turn of a conversation; read again at each change of phase
   * @param {{number: number, count: number}} versions of it
   * @param {Acts} acts
   */
  constructor(catalogue, turn, versions, acts) {
    this.#catalogue = catalogue;
    this.#turn = turn;
    this.#versions = versions;
    this.#acts = acts;
    this.#question = this.#makeQuestion();
    this.#question.dataset.turn = turn.id;
    this.#answer = stamp(catalogue, "answer");
    this.#text = this.#answer.querySelector(".message-text");
    this.#wait = new Waiting(catalogue, this.#answer.querySelector(".message-wait"), acts.isLoading);
    this.#words = new MarkdownView(this.#text, {
      code: (pre, language) => this.#frameCode(pre, language),
      thoughts: () => stamp(catalogue, "thoughts"),
    });
    this.elements = [this.#question, this.#answer];
  }

  /** Whether the user is editing the question. */
  get editing() {
    return this.#question.dataset.editing !== undefined;
  }

  /** Shows a running answer in this phase: one of responses.js, or `elsewhere` for an answer of another window. */
  show(phase, turn = this.#turn) {
    this.#turn = turn;
    if (phase.kind === "ended") return this.end();
    this.#answer.dataset.state = "streaming";
    const isArriving = phase.kind === "more" || (this.#turn.answer !== "" && ["asked", "reading"].includes(phase.kind));
    if (isArriving) this.#wait.hide();
    else this.#wait.show(phase, this.#turn);
    this.#drawSoon();
  }

  /** Shows a completed answer. */
  end() {
    const turn = this.#turn;
    cancelAnimationFrame(this.#frame);
    this.#answer.dataset.state = turn.state === "open" ? "cancelled" : turn.state;
    this.#wait.hide();
    this.#draw();
    this.#text.hidden = turn.answer === "";
    if (turn.state === "failed") {
      this.#answer.append(failureBox(this.#catalogue, turn.error ?? {}, () => this.#acts.again()));
    }
    this.#answer.append(this.#makeTools());
    this.#acts.grown();
  }

  /** Keeps the keyboard focus on the version buttons. */
  focusVersions(step) {
    const [wanted, other] = step < 0 ? ["back", "forth"] : ["forth", "back"];
    const tool = (name) => this.#answer.querySelector(`[data-tool="${name}"]`);
    (tool(wanted)?.disabled ? tool(other) : tool(wanted))?.focus();
  }

  /** Opens the editor of the question. */
  edit() {
    if (this.editing) return;
    const editor = stamp(this.#catalogue, "editor");
    const area = editor.querySelector("textarea");
    const close = () => {
      editor.remove();
      delete this.#question.dataset.editing;
      this.#question.querySelector('[data-tool="edit"]').focus();
    };
    const send = () => {
      const words = area.value.trim();
      if (words === "") return;
      this.#acts.edit(words);
    };
    area.value = this.#turn.question;
    area.addEventListener("input", () => fitHeight(area));
    area.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && !event.shiftKey) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    editor.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    editor.querySelector('[data-tool="cancel"]').addEventListener("click", close);
    this.#question.dataset.editing = "";
    this.#question.append(editor);
    fitHeight(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #makeQuestion() {
    const question = stamp(this.#catalogue, "question");
    question.querySelector(".message-text").textContent = this.#turn.question;
    copyOnClick(this.#catalogue, question.querySelector('[data-tool="copy"]'), () => this.#turn.question);
    this.#foldIfLong(question);
    question.querySelector('[data-tool="edit"]').addEventListener("click", () => this.edit());
    return question;
  }

  #foldIfLong(question) {
    const button = question.querySelector(".message-unfold");
    const fold = (isFolded) => {
      question.dataset.folded = String(isFolded);
      button.setAttribute("aria-expanded", String(!isFolded));
      button.textContent = text(this.#catalogue, isFolded ? "unfold" : "fold");
    };
    if (this.#turn.question.length < LONG_CHARACTERS) return;
    button.hidden = false;
    button.addEventListener("click", () => fold(question.dataset.folded === "false"));
    fold(true);
  }

  /** Draws once per animation frame: a fast engine sends more deltas than the screen shows frames. */
  #drawSoon() {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => {
      this.#draw();
      this.#acts.grown();
    });
  }

  #draw() {
    this.#words.show(this.#turn.answer);
  }

  #frameCode(pre, language) {
    const frame = stamp(this.#catalogue, "code");
    frame.querySelector(".code-language").textContent = language;
    copyOnClick(this.#catalogue, frame.querySelector('[data-tool="copy"]'), () => pre.textContent);
    pre.tabIndex = 0; // long lines are not wrapped: scrolling by keyboard needs the focus
    frame.append(pre);
    return frame;
  }

  #makeTools() {
    const tools = stamp(this.#catalogue, "answer-tools");
    const tool = (name) => tools.querySelector(`[data-tool="${name}"]`);
    const { number, count } = this.#versions;
    tools.querySelector(".versions").hidden = count < 2;
    tools.querySelector(".versions-text").textContent = text(this.#catalogue, "version", { number, count });
    tool("back").disabled = number === 1;
    tool("forth").disabled = number === count;
    tool("back").addEventListener("click", () => this.#acts.step(-1));
    tool("forth").addEventListener("click", () => this.#acts.step(1));
    tool("again").addEventListener("click", () => this.#acts.again());
    copyOnClick(this.#catalogue, tool("copy"), () => splitThoughts(this.#turn.answer).answer);
    tool("copy").hidden = this.#turn.answer === "";
    this.#describe(tools, tool("details"));
    return tools;
  }

  /** Shows the remark at once, and the statistics on click. */
  #describe(tools, button) {
    tools.querySelector(".remark").textContent = remarkOf(this.#catalogue, this.#turn);
    const stats = tools.querySelector(".stats");
    const { usage = null } = this.#turn;
    button.hidden = usage === null;
    if (usage === null) return;
    for (const fact of this.#facts(usage)) {
      const span = document.createElement("span");
      span.textContent = fact;
      stats.append(span, " ");
    }
    const cached = usage.input_tokens_details?.cached_tokens ?? 0;
    Object.assign(stats.dataset, { output: usage.output_tokens, prompt: usage.input_tokens, cached });
    button.addEventListener("click", () => {
      stats.hidden = !stats.hidden;
      button.setAttribute("aria-expanded", String(!stats.hidden));
      this.#acts.grown();
    });
  }

  #facts(usage) {
    const number = new Intl.NumberFormat(this.#catalogue.tag, { maximumFractionDigits: 1 });
    const { rate = null } = this.#turn;
    const count = usage.output_tokens;
    const cached = number.format(usage.input_tokens_details?.cached_tokens ?? 0);
    const facts = [text(this.#catalogue, "tokens", { count, number: number.format(count) })];
    if (rate !== null) facts.push(text(this.#catalogue, "rate", { number: number.format(rate) }));
    facts.push(text(this.#catalogue, "cached", { cached, prompt: number.format(usage.input_tokens) }));
    return facts;
  }
}
