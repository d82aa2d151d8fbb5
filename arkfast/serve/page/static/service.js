// Asks the service that the page came from. Nobody else is asked anything.

/** A request that failed. */
export class Failed extends Error {
  /**
   * known: the name of a text of the page. message: what the service said, in English, or "". retry: seconds after which it is worth to
   * ask again, or null. values: for the text.
   */
  constructor(known, { message = "", status = 0, retry = null, values = {} } = {}) {
    super(message);
    Object.assign(this, { known, status, retry, values });
  }
}

const OF_CODE = {
  missing_api_key: "error_key", invalid_api_key: "error_key", invalid_audio: "error_recording", missing_file: "error_recording",
  too_large: "error_large", audio_too_long: "error_large", upload_timeout: "error_slow", timeout: "error_time",
  overloaded: "error_busy", rate_limit_exceeded: "error_busy", invalid_value: "error_field", unsupported_value: "error_field",
  engine_unavailable: "error_engine", decoding_failed: "error_engine", stopping: "error_engine",
  transcript_changed: "error_engine", internal_error: "error_engine",
};

const at = (path) => new URL(path.replace(/^\//, ""), document.baseURI);
let key = "";

/** The key that goes with every request from now on, or "". */
export const useKey = (value) => { key = value; };

async function asked(path, options = {}) {
  let answer;
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    answer = await fetch(at(path), { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failed("unreachable");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const retry = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
  const more = { status: answer.status, retry: Number.isFinite(retry) ? retry : null };
  let error;
  try {
    ({ error } = JSON.parse(await answer.text()));
  } catch { // a proxy's answer, which is no JSON
    error = null;
  }
  if (typeof error?.message !== "string") return new Failed("unreadable", { ...more, values: { status: answer.status } });
  return new Failed(OF_CODE[error.code] ?? "error_other", { ...more, message: error.message });
}

/** A route's JSON. */
export async function json(path, options) {
  const answer = await asked(path, options);
  const body = await bodyOf(answer);
  try {
    return JSON.parse(body);
  } catch {
    throw new Failed("unreadable", { values: { status: answer.status } });
  }
}

async function bodyOf(answer) {
  try {
    return await answer.text();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failed("broken_off");
  }
}

/**
 * Transcribe a file. path: of the route; fields: the form's, as [name, value]; signal: ends it. With onDelta the text comes as server-sent
 * events, and it is called with each piece. Returns the service's last object. Throws Failed, or AbortError.
 */
export async function transcribe(path, file, fields, signal, onDelta = null) {
  const body = new FormData();
  for (const [name, value] of fields) body.append(name, value);
  body.append("file", file, file.name);
  if (onDelta === null) return json(path, { method: "POST", body, signal });
  const answer = await asked(path, { method: "POST", body, signal });
  for await (const event of events(answer.body)) {
    if (event.type === "transcript.text.delta") onDelta(event.delta);
    if (event.type === "transcript.text.done") return event;
    if (event.type === "error") throw new Failed(OF_CODE[event.error?.code] ?? "error_other", { message: event.error?.message ?? "" });
  }
  throw new Failed("broken_off");
}

/** The objects of a stream of server-sent events. https://html.spec.whatwg.org/multipage/server-sent-events.html */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
        if (data) yield parsed(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it is over already, or broken
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failed("broken_off");
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Failed("broken_off");
  }
}
