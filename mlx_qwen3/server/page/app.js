/** The page: which conversation is shown, and what happens when somebody writes, stops, retries or edits. */
import { models } from "./api.js";
import { isRunning, reply, stop, stopAll } from "./replies.js";
import * as settings from "./settings.js";
import * as sidebar from "./sidebar.js";
import * as state from "./state.js";
import { ReplyView, copy, editMessage, fit, number, sends, userMessage } from "./view.js";

const $ = (id) => document.getElementById(id);
const NEAR_END = 60; // px: who is nearer to the end than this wants to follow the reply
let shown = null; // the conversation; null for one that has not begun
let lastReply = null; // the view of the reply that may grow
let contexts = new Map(); // of the models, in tokens

// The conversation that is shown

function show() {
  shown = state.get(location.hash.slice(1)) ?? null;
  sidebar.close();
  drawMessages();
  drawFrame();
  scrollToEnd();
  focusText();
}

function focusText() {
  if (!matchMedia("(pointer: coarse)").matches) $("text").focus(); // on a phone it would open the keyboard
}

function drawMessages() {
  const views = (shown?.messages ?? []).map((message, index) => {
    if (message.role === "user") return userMessage(message, { edit: (article) => edit(article, message, index) });
    lastReply = new ReplyView(message, { retry });
    return lastReply.element;
  });
  if (shown?.messages.at(-1)?.role !== "assistant") lastReply = null;
  $("messages").replaceChildren(...views);
}

/** All around the messages. */
function drawFrame() {
  const title = shown?.title ?? "New chat";
  document.title = shown ? `${title} – mlx-qwen3` : "mlx-qwen3";
  $("title").textContent = title;
  document.body.classList.toggle("empty", !shown);
  sidebar.draw(shown?.id);
  drawComposer();
}

function drawComposer() {
  const running = isRunning(shown);
  $("send").setAttribute("aria-label", running ? "Stop" : "Send");
  $("send").querySelector("use").setAttribute("href", running ? "#icon-stop" : "#icon-send");
  $("send").disabled = !running && !$("text").value.trim();
  const used = shown?.messages.findLast((message) => message.stats?.context)?.stats.context;
  const most = contexts.get($("model").value);
  $("context").hidden = !(used && most);
  if (!used || !most) return;
  $("used").textContent = `${number(used)} of ${number(most)} tokens`;
  $("meter").setAttribute("aria-valuemax", most);
  $("meter").setAttribute("aria-valuenow", used);
  $("meter").firstElementChild.style.width = `${Math.min(100, (100 * used) / most)}%`;
}

// What somebody does

function send(text) {
  if (!text || isRunning(shown) || !settings.check()) return;
  $("text").value = "";
  fit($("text"));
  shown ??= state.create(text);
  history.replaceState(null, "", `#${shown.id}`);
  shown.messages.push({ role: "user", content: text });
  answer();
}

function retry() {
  if (!settings.check()) return;
  stop(shown);
  shown.messages.pop();
  answer();
  focusText(); // the button is gone
}

function edit(article, message, index) {
  editMessage(article, message.content, (text) => {
    if (!settings.check()) return;
    stop(shown);
    shown.messages.splice(index, Infinity, { role: "user", content: text });
    answer();
    focusText();
  });
}

async function answer() {
  const conversation = shown;
  const parameters = settings.parameters();
  const asked = { model: parameters.model, system: settings.systemMessage(), parameters, key: settings.key() };
  const growing = reply(conversation, asked, (message) => conversation === shown && grow(message));
  drawMessages();
  drawFrame();
  scrollToEnd();
  $("status").textContent = "The reply is being written.";
  const error = await growing;
  if (error?.status === 401) settings.show(true);
  sidebar.draw(shown?.id);
}

let frame = 0;

/** Draws a reply that has grown, at most once for each picture of the screen; its end at once. */
function grow(message) {
  const draw = () => {
    frame = 0;
    if (lastReply?.message !== message) return;
    const follow = nearEnd();
    lastReply.update();
    if (follow) scrollToEnd();
  };
  if (message.end === null) {
    frame ||= requestAnimationFrame(draw);
    return;
  }
  cancelAnimationFrame(frame);
  draw();
  drawComposer();
  $("status").textContent = message.error ?? (message.end === "stopped" ? "Stopped." : "The reply is complete.");
}

// Scrolling

function nearEnd() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END;
}

function scrollToEnd() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

// The server

async function loadModels() {
  try {
    const found = await models(settings.key());
    contexts = new Map(found.map(({ id, context }) => [id, context]));
    settings.offer([...contexts.keys()]);
    notify("");
    drawComposer();
  } catch (error) {
    const wantsKey = error.status === 401;
    if (wantsKey) settings.show(true);
    if (wantsKey) notify("This server wants an API key. Enter it in the settings.");
    else notify(error.message, loadModels);
  }
}

function notify(text, again = null) {
  const [words, button] = $("notice").children;
  words.textContent = text;
  button.textContent = "Try again";
  button.hidden = !again;
  button.onclick = again;
  $("notice").hidden = !text;
}

// The beginning

function listen() {
  window.addEventListener("hashchange", show);
  window.addEventListener("pagehide", stopAll);
  document.addEventListener("keydown", (event) => {
    const closes = document.querySelector("dialog[open]"); // which Esc closes
    if (event.key === "Escape" && !closes) stop(shown);
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
    const code = event.target.closest(".copy-code");
    if (code) copy(code.closest("figure").querySelector("pre").textContent, code);
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isRunning(shown)) stop(shown);
    else send($("text").value.trim());
  });
  $("text").addEventListener("keydown", (event) => sends(event) && send($("text").value.trim()));
  $("text").addEventListener("input", () => {
    fit($("text"));
    drawComposer();
  });
  $("model").addEventListener("change", drawComposer);
  $("messages").addEventListener("scroll", () => ($("to-end").hidden = nearEnd()));
  $("to-end").addEventListener("click", scrollToEnd);
}

function chooseTheme() {
  for (const radio of document.getElementsByName("theme")) {
    radio.checked = radio.value === document.documentElement.dataset.theme;
    radio.addEventListener("change", () => {
      document.documentElement.dataset.theme = radio.value;
      state.keep("theme", radio.value);
    });
  }
}

/** Another tab has changed a conversation. */
function refresh(id) {
  if (id === shown?.id && !isRunning(shown)) {
    shown = state.get(id) ?? null;
    drawMessages();
  }
  drawFrame();
}

function forget(id) {
  stop({ id });
  if (id === shown?.id) location.hash = "";
  else drawFrame();
  focusText();
}

state.open(notify, refresh);
settings.open(loadModels);
sidebar.open(forget, drawFrame);
listen();
chooseTheme();
show();
loadModels();
