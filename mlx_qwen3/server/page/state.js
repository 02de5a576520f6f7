/**
 * Conversations and settings, kept in this browser (localStorage).
 *
 * Each conversation has a key of its own, so that two tabs do not overwrite each other's.
 *
 * @typedef {{role: "user", content: string}} UserMessage
 * @typedef {{tokens: number, rate: number?, first: number?, context: number?}} Stats  in tokens, tokens/s and seconds
 * @typedef {{role: "assistant", content: string, thinking: string, model: string, end: string?, error: string?,
 *            thought: number?, stats: Stats?}} Reply  `end` is null while it runs; `thought` is in seconds
 * @typedef {{id: string, title: string, updated: number, messages: (UserMessage | Reply)[]}} Conversation
 */

const PREFIX = "mlx-qwen3/";
const CHAT = `${PREFIX}chat/`;
const TITLE_LENGTH = 60;

/** @type {Map<string, Conversation>} */
const conversations = new Map();
let complain = () => {};

/** Reads what is kept. `onFault(text)` says that the browser keeps nothing, `onChange(id)` that another tab did save. */
export function open(onFault, onChange) {
  complain = onFault;
  for (const key of keys()) take(key, read(key));
  for (const { messages } of conversations.values()) {
    for (const message of messages) if (message.end === null) message.end = "cut"; // the page was closed meanwhile
  }
  window.addEventListener("storage", (event) => {
    if (!event.key?.startsWith(CHAT)) return;
    take(event.key, parse(event.newValue));
    onChange(event.key.slice(CHAT.length));
  });
}

/** The conversations, the latest first. */
export function list() {
  return [...conversations.values()].sort((a, b) => b.updated - a.updated);
}

export function get(id) {
  return conversations.get(id);
}

/** A new conversation, which begins with the text of a user. */
export function create(text) {
  const line = text.trim().split("\n", 1)[0];
  const title = line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line;
  const conversation = { id: newId(), title, updated: Date.now(), messages: [] };
  conversations.set(conversation.id, conversation);
  return conversation;
}

/** Keeps a conversation, unless it has been deleted meanwhile. */
export function save(conversation) {
  if (conversations.has(conversation.id)) write(CHAT + conversation.id, conversation);
}

export function remove(id) {
  conversations.delete(id);
  guarded(() => localStorage.removeItem(CHAT + id));
}

/** A kept value beside the conversations, such as the settings. */
export function recall(name, otherwise) {
  return read(PREFIX + name) ?? otherwise;
}

export function keep(name, value) {
  write(PREFIX + name, value);
}

function take(key, value) {
  const id = key.slice(CHAT.length);
  if (!Array.isArray(value?.messages)) {
    conversations.delete(id);
    return;
  }
  // The same object stays, because a view may hold it.
  conversations.set(id, Object.assign(conversations.get(id) ?? {}, value, { id }));
}

function keys() {
  return guarded(() => Object.keys(localStorage).filter((key) => key.startsWith(CHAT))) ?? [];
}

function read(key) {
  return parse(guarded(() => localStorage.getItem(key)));
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // not ours, or damaged
  }
}

function write(key, value) {
  guarded(() => localStorage.setItem(key, JSON.stringify(value)));
}

/** A browser may have no storage for this page, or no room left in it. The chat goes on without. */
function guarded(call) {
  try {
    return call();
  } catch (error) {
    const full = error.name === "QuotaExceededError";
    complain(
      full
        ? "The storage of this browser is full: what is new is lost when you close the page. Delete old conversations."
        : "This browser stores nothing for this page: conversations are lost when you close it.",
    );
    return undefined;
  }
}

function newId() {
  // crypto.randomUUID is missing on pages that come over plain HTTP from another machine.
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
