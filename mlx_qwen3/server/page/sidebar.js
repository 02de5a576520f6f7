/** The list of conversations, and the drawer that holds it on a narrow screen. */
import * as state from "./state.js";
import { stamp } from "./view.js";

const $ = (id) => document.getElementById(id);
const narrow = window.matchMedia("(width < 52rem)");

let onRename = () => {};
let drawn = "";

/** `onDelete(id)` is called after a conversation was deleted, `renamed(id)` after it got a name. */
export function open(onDelete, renamed) {
  onRename = renamed;
  $("open-side").addEventListener("click", () => drawer(true));
  $("close-side").addEventListener("click", () => drawer(false));
  $("scrim").addEventListener("click", () => drawer(false));
  narrow.addEventListener("change", () => drawer(false));
  $("side").addEventListener("click", (event) => event.target.closest("a") && close());
  $("side").addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !document.body.classList.contains("side-open")) return;
    event.stopPropagation();
    drawer(false);
  });
  $("delete").addEventListener("click", () => {
    const id = $("confirm").dataset.id;
    $("confirm").close();
    state.remove(id);
    onDelete(id);
  });
  drawer(false);
}

export function close() {
  if (document.body.classList.contains("side-open")) drawer(false);
}

/** Draws the list if it has changed; `id` is the conversation that is shown. */
export function draw(id) {
  const content = JSON.stringify([id, state.list().map((conversation) => [conversation.id, conversation.title])]);
  if (content === drawn || $("conversations").querySelector("input")) return; // the focus stays where it is
  drawn = content;
  $("conversations").replaceChildren(...state.list().map((conversation) => row(conversation, conversation.id === id)));
  $("new-chat").toggleAttribute("aria-current", !id);
}

function row(conversation, current) {
  const item = stamp("row");
  const link = item.querySelector("a");
  link.href = `#${conversation.id}`;
  link.textContent = link.title = conversation.title;
  link.toggleAttribute("aria-current", current);
  for (const action of ["rename", "delete"]) {
    const button = item.querySelector(`.${action}`);
    button.title = action[0].toUpperCase() + action.slice(1);
    button.setAttribute("aria-label", `${button.title} “${conversation.title}”`);
  }
  item.querySelector(".rename").addEventListener("click", () => rename(item, conversation));
  item.querySelector(".delete").addEventListener("click", () => ask(conversation));
  return item;
}

function rename(item, conversation) {
  const field = Object.assign(document.createElement("input"), { value: conversation.title, maxLength: 200 });
  field.setAttribute("aria-label", "New name");
  let open = true;
  const close = (keep) => {
    if (!open) return; // removing the field takes its focus, which comes here again
    open = false;
    drawn = "";
    field.remove();
    if (keep && field.value.trim()) conversation.title = field.value.trim();
    state.save(conversation);
    onRename(conversation.id);
  };
  field.addEventListener("blur", () => close(true));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") close(true);
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close(false);
  });
  item.replaceChildren(field);
  field.select();
}

function ask(conversation) {
  $("question").textContent = `Delete “${conversation.title}”? It cannot be brought back.`;
  $("confirm").dataset.id = conversation.id;
  $("confirm").showModal();
}

function drawer(open) {
  document.body.classList.toggle("side-open", open);
  $("open-side").setAttribute("aria-expanded", String(open));
  $("side").inert = narrow.matches && !open; // what is out of sight gets no focus
  document.querySelector("main").inert = open;
  if (open) $("close-side").focus();
}
