/** Replies under way, at most one for each conversation. They go on while another conversation is shown. */
import { chat } from "./api.js";
import { save } from "./state.js";

const SAVE_EVERY = 1000; // ms
/** @type {Map<string, {message: object, stop: () => void}>} by the id of the conversation */
const running = new Map();

export function isRunning(conversation) {
  return running.has(conversation?.id);
}

export function stop(conversation) {
  running.get(conversation?.id)?.stop();
}

export function stopAll() {
  for (const run of running.values()) run.stop();
}

/**
 * Adds a reply to a conversation, and lets it grow. `onChange(message)` is called after each piece and at the end.
 * An error becomes part of the reply. Returns the error, if there was one.
 */
export async function reply(conversation, { model, system, parameters, key }, onChange) {
  stop(conversation);
  const body = { ...parameters, messages: history(conversation, system) };
  const empty = { content: "", thinking: "", end: null, error: null, thought: null, stats: null };
  const message = { role: "assistant", model, ...empty };
  conversation.messages.push(message);
  conversation.updated = Date.now();

  const controller = new AbortController();
  const run = { message, stop: () => finish("stopped") };
  const finish = (end) => {
    if (message.end !== null) return;
    message.end = end;
    controller.abort();
    if (running.get(conversation.id) === run) running.delete(conversation.id);
    save(conversation);
    onChange(message);
  };
  running.set(conversation.id, run);
  save(conversation);
  onChange(message);

  try {
    const clock = new Clock(message);
    let saved = performance.now();
    let end = "stop";
    for await (const part of chat(body, key, controller.signal)) {
      if (message.end !== null) return null;
      message.thinking += part.thinking ?? "";
      message.content += part.content ?? "";
      end = part.finish ?? end;
      clock.note(part);
      if (performance.now() - saved > SAVE_EVERY) {
        save(conversation);
        saved = performance.now();
      }
      onChange(message);
    }
    finish(end);
  } catch (error) {
    if (message.end !== null) return null; // it was stopped
    message.error = error.message;
    finish("error");
    return error;
  }
  return null;
}

/** Measures a reply. Until the server has counted its tokens, each piece counts as one. */
class Clock {
  #message;
  #start = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;

  constructor(message) {
    this.#message = message;
  }

  note({ thinking, content, usage }) {
    const now = performance.now();
    if (thinking || content) {
      this.#first ??= now;
      this.#last = now;
      this.#pieces += 1;
      if (thinking) this.#message.thought = (now - this.#first) / 1000;
    }
    const tokens = usage?.completion_tokens ?? this.#pieces;
    const seconds = (this.#last - this.#first) / 1000;
    this.#message.stats = {
      tokens,
      rate: tokens > 2 && seconds > 0 ? (tokens - 1) / seconds : null,
      first: this.#first === null ? null : (this.#first - this.#start) / 1000,
      context: usage?.total_tokens ?? null,
    };
  }
}

/** The messages as the server takes them. A reply that failed before its first word is left out. */
function history(conversation, system) {
  const spoken = conversation.messages.filter((message) => message.content || message.thinking);
  const messages = spoken.map(({ role, content, thinking }) =>
    thinking ? { role, content, reasoning_content: thinking } : { role, content },
  );
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}
