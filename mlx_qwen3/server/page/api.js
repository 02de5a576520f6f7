/** The server's API: its models, and replies as they are generated. */

export class ApiError extends Error {
  /** `status` is 0 if no answer came, or if the error came within a stream. */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** @returns {Promise<{id: string, context: number?}[]>} */
export async function models(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  const { data } = await response.json();
  return data.map((model) => ({ id: model.id, context: model.max_model_len ?? null }));
}

/**
 * A reply, piece by piece: {thinking} and {content} add text, {finish} says why it ended, {usage} counts tokens.
 * Throws ApiError, or AbortError if `signal` stops it.
 */
export async function* chat(body, key, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let complete = false;
  for await (const data of events(response.body)) {
    complete = data === "[DONE]";
    if (complete) break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(said(chunk.error));
    const choice = chunk.choices?.[0];
    if (choice?.delta.reasoning_content) yield { thinking: choice.delta.reasoning_content };
    if (choice?.delta.content) yield { content: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  if (!complete) throw new ApiError("The connection ended before the reply was complete.");
}

/** The data of each server-sent event of a stream of bytes. Comments are left out. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch(brokenConnection);
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice("data: ".length);
  }
}

async function ask(path, options) {
  const response = await fetch(path, options).catch(brokenConnection);
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new ApiError(error ? said(error) : `The server answered with status ${response.status}.`, response.status);
}

function said(error) {
  return `The server says: ${error.message}`;
}

function brokenConnection(error) {
  if (error.name === "AbortError") throw error;
  throw new ApiError("The server does not answer. Check that it is still running, then retry.");
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}
