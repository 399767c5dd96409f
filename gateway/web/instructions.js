/** The dialog for instructions and sampling of one conversation. Loaded when it is opened for the first time. */

import { examples } from "./examples.js";
import { text, translate } from "./i18n.js";
import { LONGEST_INSTRUCTIONS, SAMPLING, optionsOf } from "./options.js";

const MARKUP = `
  <form method="dialog" class="panel">
    <h2 id="instructions-title" data-i18n="instructions"></h2>
    <p class="panel-more" data-i18n="instructionsMore"></p>
    <label><span data-i18n="instructionsReady"></span><select name="ready" data-testid="ready"></select></label>
    <label><span class="unseen" data-i18n="instructions"></span>
      <textarea name="instructions" rows="6" dir="auto" maxlength="${LONGEST_INSTRUCTIONS}" data-testid="instructions"></textarea></label>
    <div class="panel-row">
      <button class="quiet" type="button" name="save" data-testid="save-instructions" data-i18n="instructionsSave"></button>
      <button class="quiet" type="button" name="forget" data-testid="forget-instructions" data-i18n="instructionsForget" hidden></button>
      <span class="panel-said" role="status"></span>
    </div>
    <details data-testid="sampling"><summary data-i18n="samplingDetails"></summary><div class="panel-numbers"></div></details>
    <div class="panel-row panel-end">
      <button class="quiet" type="button" name="cancel" data-i18n="cancel"></button>
      <button class="quiet strong" type="submit" value="apply" data-testid="apply" data-i18n="apply"></button>
    </div>
  </form>`;
const GROUPS = ["mine", "offered", "examples"];

export class InstructionsDialog {
  #catalogue;
  #saved;
  #dialog;
  #form;
  #ready = {}; // texts by group and name
  #apply = () => {};

  /** @param {object} catalogue of texts @param {import("./saved.js").SavedInstructions} saved */
  constructor(catalogue, saved) {
    this.#catalogue = catalogue;
    this.#saved = saved;
    this.#dialog = document.createElement("dialog");
    Object.assign(this.#dialog, { className: "sheet panel-dialog", innerHTML: MARKUP });
    this.#dialog.dataset.testid = "instructions-dialog";
    this.#dialog.setAttribute("aria-labelledby", "instructions-title");
    this.#form = this.#dialog.querySelector("form");
    this.#dialog.querySelector(".panel-numbers").append(...Object.entries(SAMPLING).map((entry) => this.#number(...entry)));
    translate(this.#dialog, catalogue);
    const { ready, save, forget, cancel } = this.#form.elements;
    ready.addEventListener("change", () => this.#chosen());
    save.addEventListener("click", () => this.#save());
    forget.addEventListener("click", () => this.#forget());
    cancel.addEventListener("click", () => this.#dialog.close());
    this.#form.addEventListener("submit", () => this.#apply(this.#read()));
    document.body.append(this.#dialog);
  }

  /**
   * Shows the options of a conversation.
   *
   * @param {Object<string, string>} offered instructions that the operator offers, by name
   * @param {(options: object) => void} apply called with the new options
   */
  open(conversation, offered, apply) {
    const options = optionsOf(conversation);
    this.#apply = apply;
    this.#ready = { offered, examples: examples[this.#catalogue.tag] };
    this.#form.elements.instructions.value = options.instructions ?? "";
    for (const name of Object.keys(SAMPLING)) this.#form.elements[name].value = options[name] ?? "";
    this.#dialog.querySelector("details").open = Object.keys(SAMPLING).some((name) => name in options);
    this.#say("");
    this.#listReady();
    this.#dialog.showModal();
    this.#form.elements.instructions.focus();
  }

  /** Lists what the operator offers, which may become known while the dialog is open. */
  offer(offered) {
    if (JSON.stringify(offered) === JSON.stringify(this.#ready.offered)) return;
    const { ready, forget } = this.#form.elements;
    const [chosen, isHidden] = [ready.value, forget.hidden];
    this.#ready.offered = offered;
    this.#listReady();
    [ready.value, forget.hidden] = [chosen, isHidden];
  }

  #number(name, limits) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    label.append(text(this.#catalogue, name), input);
    Object.assign(input, { name, type: "number", ...limits, placeholder: text(this.#catalogue, "samplingDefault") });
    if (limits.step !== 1) input.step = "any";
    input.dataset.testid = name;
    return label;
  }

  #listReady() {
    this.#ready.mine = Object.fromEntries(this.#saved.all);
    const choose = new Option(text(this.#catalogue, "instructionsChoose"), "");
    const groups = GROUPS.map((group) => {
      const element = document.createElement("optgroup");
      element.label = text(this.#catalogue, `instructions_${group}`);
      element.append(...Object.keys(this.#ready[group]).map((name) => new Option(name, `${group}.${name}`)));
      return element;
    });
    this.#form.elements.ready.replaceChildren(choose, ...groups.filter((group) => group.childElementCount > 0));
    this.#form.elements.forget.hidden = true;
  }

  /** Returns the group and the name of the chosen entry. */
  get #choice() {
    const { value } = this.#form.elements.ready;
    const end = value.indexOf(".");
    return [value.slice(0, Math.max(0, end)), value.slice(end + 1)];
  }

  #chosen() {
    const [group, name] = this.#choice;
    this.#form.elements.forget.hidden = group !== "mine";
    if (group !== "") this.#form.elements.instructions.value = this.#ready[group][name];
    this.#say("");
  }

  #save() {
    const words = this.#form.elements.instructions.value;
    if (words.trim() === "") return this.#form.elements.instructions.focus();
    this.#say(this.#saved.add(words) ? "instructionsSaved" : "instructionsUnsaved");
    this.#listReady();
  }

  #forget() {
    this.#saved.remove(this.#choice[1]);
    this.#say("instructionsForgotten");
    this.#listReady();
  }

  #say(key) {
    this.#dialog.querySelector(".panel-said").textContent = key && text(this.#catalogue, key);
  }

  #read() {
    const { elements } = this.#form;
    const numbers = Object.keys(SAMPLING).filter((name) => elements[name].value !== "");
    const entries = numbers.map((name) => [name, elements[name].valueAsNumber]);
    return { instructions: elements.instructions.value, ...Object.fromEntries(entries) };
  }
}
