/** The settings: their fields, and what they add to a request. They hold for all conversations. */
import { keep, recall } from "./state.js";

const NUMBERS = ["thinking_budget", "temperature", "max_tokens", "top_p", "top_k", "seed"];
const THINKING = { on: true, off: false };
const $ = (id) => document.getElementById(id);

export const key = () => recall("key", "");

/** Fills the fields and keeps what is changed in them. `onKey` is called for a new key. */
export function open(onKey) {
  const form = $("settings").querySelector("form");
  fill(recall("settings", {}));
  $("key").value = key();
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => event.target !== $("key") && changed());
  $("key").addEventListener("change", () => {
    keep("key", $("key").value.trim());
    onKey();
  });
  $("model").addEventListener("change", changed);
  $("reset").addEventListener("click", () => {
    fill({});
    changed();
  });
  $("open-settings").addEventListener("click", () => show());
}

/** Opens the dialog, at the field of the key if it is what lacks. */
export function show(wantsKey = false) {
  if (!$("settings").open) $("settings").showModal();
  if (wantsKey) $("key").focus();
}

/** Offers the models of the server. */
export function offer(names) {
  const chosen = recall("settings", {}).model;
  $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  $("model").value = names.includes(chosen) ? chosen : (names[0] ?? "");
}

/** Whether every number is one that can be sent. If not, the dialog shows which is not. */
export function check() {
  const wrong = NUMBERS.map($).find((field) => !field.disabled && !field.validity.valid);
  if (!wrong) return true;
  show();
  wrong.focus();
  return false;
}

/** The parameters of a request: only what is set, so that the rest has the defaults of the model. */
export function parameters() {
  const numbers = NUMBERS.filter((name) => $(name).value !== "" && !$(name).disabled);
  const thinking = THINKING[chosenThinking()];
  return {
    ...($("model").value && { model: $("model").value }),
    ...(thinking !== undefined && { enable_thinking: thinking }),
    ...Object.fromEntries(numbers.map((name) => [name, $(name).valueAsNumber])),
  };
}

export function systemMessage() {
  return $("system").value.trim();
}

function changed() {
  keep("settings", {
    model: $("model").value,
    system: $("system").value,
    thinking: chosenThinking(),
    ...Object.fromEntries(NUMBERS.map((name) => [name, $(name).value])),
  });
  review();
}

function fill(values) {
  for (const name of ["system", ...NUMBERS]) $(name).value = values[name] ?? "";
  for (const radio of document.getElementsByName("thinking")) radio.checked = radio.value === (values.thinking ?? "");
  review();
}

/** Says what is wrong with a field, and switches off what has no effect. */
function review() {
  $("thinking_budget").disabled = chosenThinking() === "off";
  const wrong = NUMBERS.map($).filter((field) => !field.validity.valid);
  const lines = wrong.map((field) => `${field.labels[0].textContent}: ${field.validationMessage}`);
  $("invalid").textContent = lines.join(" ");
}

function chosenThinking() {
  return document.querySelector("[name=thinking]:checked")?.value ?? "";
}
