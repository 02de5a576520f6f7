/** The messages of a conversation as elements. What a button of a message does is decided in app.js. */
import { Growing } from "./render.js";

const ENDS = { length: "reached max tokens", stopped: "stopped", cut: "interrupted" };

export function stamp(template) {
  return document.getElementById(template).content.firstElementChild.cloneNode(true);
}

/** The element of a user's message. `actions` has edit(). */
export function userMessage(message, actions) {
  const article = stamp("user");
  article.querySelector(".bubble").textContent = message.content;
  article.querySelector(".copy").addEventListener("click", (event) => copy(message.content, event.target));
  article.querySelector(".edit").addEventListener("click", () => actions.edit(article));
  return article;
}

/** Replaces the text of a message by a field to edit it. `send` is given the new text, unless it is empty. */
export function editMessage(article, text, send) {
  const form = stamp("editor");
  const field = form.querySelector("textarea");
  const close = () => {
    form.remove();
    article.classList.remove("edited");
    article.querySelector(".edit").focus();
  };
  field.value = text;
  form.querySelector(".cancel").addEventListener("click", close);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) send(field.value.trim());
  });
  field.addEventListener("keydown", (event) => {
    if (sends(event)) form.requestSubmit();
    if (event.key !== "Escape") return;
    event.stopPropagation(); // or it would stop a reply
    close();
  });
  field.addEventListener("input", () => fit(field));
  article.classList.add("edited");
  article.append(form);
  fit(field);
  field.focus();
}

/** The element of a reply, which grows. `actions` has retry(). */
export class ReplyView {
  constructor(message, actions) {
    this.message = message;
    this.element = stamp("assistant");
    this.find = (selector) => this.element.querySelector(selector);
    this.thought = new Growing(this.find(".thought"));
    this.content = new Growing(this.find(".content"));
    this.find(".copy").addEventListener("click", (event) => copy(message.content, event.target));
    this.find(".retry").addEventListener("click", actions.retry);
    this.update();
  }

  update() {
    const { content, thinking, error, end } = this.message;
    this.element.setAttribute("aria-busy", String(end === null));
    this.element.classList.toggle("waiting", end === null && !content && !thinking);
    this.find(".thinking").hidden = !thinking;
    if (thinking) this.thought.update(thinking);
    this.find("summary").textContent = thinkingTitle(this.message);
    this.content.update(content);
    this.find(".fault").hidden = !error;
    this.find(".fault").textContent = error ?? "";
    this.find(".copy").hidden = !content;
    this.find(".stats").textContent = statistics(this.message);
  }
}

function thinkingTitle({ thinking, content, end, thought }) {
  if (thinking && !content && end === null) return "Thinking…";
  return thought ? `Thought for ${seconds(thought)}` : "Thought";
}

function statistics({ stats, end }) {
  const parts = [];
  if (stats) {
    parts.push(`${number(stats.tokens)} ${stats.tokens === 1 ? "token" : "tokens"}`);
    if (stats.rate) parts.push(`${number(stats.rate)} tokens/s`);
    if (stats.first && end !== null) parts.push(`first after ${seconds(stats.first)}`);
  }
  if (ENDS[end]) parts.push(ENDS[end]);
  return parts.join(" · ");
}

export function number(value) {
  const digits = value < 10 && !Number.isInteger(value) ? 1 : 0;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

function seconds(value) {
  const digits = value < 0.995 ? 2 : value < 9.95 ? 1 : 0;
  return `${value.toFixed(digits)} s`;
}

/** Whether a key sends a message. Enter that ends the input of a Chinese character does not. */
export function sends(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return false;
  event.preventDefault();
  return true;
}

/** Makes a field as high as its text. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

/** Copies a text, and says so on the button for a moment. */
export async function copy(text, button) {
  const done = await write(text);
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages over plain HTTP from another machine have no clipboard but the old way.
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
