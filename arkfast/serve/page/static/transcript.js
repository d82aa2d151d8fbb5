// Shows a transcript: segments with their times, words that seek the player, and marks where the model was unsure.

import { percent, text, time } from "./language.js";

const NO_SPEECH = 0.6; // as the service itself judges

/**
 * What the routes answer, as one thing. Every field but text may be missing in an answer, and is then null or empty here.
 * answer: of /v1/audio/transcriptions (json, verbose_json, or the last event of its stream) or of /asr.
 */
export function understood(answer) {
  const list = (value) => (Array.isArray(value) ? value : []);
  const isTimed = ({ start, end }) => Number.isFinite(start) && Number.isFinite(end);
  const words = list(answer.words).filter((word) => isTimed(word) && typeof word.word === "string");
  const segments = list(answer.segments).filter(isTimed);
  return {
    text: String(answer.text ?? ""),
    segments: segments.map((segment, i) => {
      const [from, to] = [i ? segment.start : -Infinity, segments[i + 1]?.start ?? Infinity];
      return { ...segment, text: String(segment.text ?? ""), words: words.filter(({ start }) => from <= start && start < to) };
    }),
    warnings: list(answer.warnings).map(String),
    language: answer.language && answer.language !== "und" ? answer.language : null, // und: nobody has said, nor has the model
    seconds: answer.usage?.seconds ?? answer.duration ?? null,
    latency: answer.latency_s ?? null,
    promptTokens: answer.prompt_tokens ?? null,
  };
}

export class Transcript {
  #place;
  #onSeek;
  #timed = [];

  /** onSeek is called with the seconds of what somebody chose. */
  constructor(place, onSeek) {
    this.#place = place;
    this.#onSeek = onSeek;
    place.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Show nothing, then add pieces of text as they come. */
  clear() {
    this.#place.replaceChildren();
    this.#timed = [];
  }

  add(piece) {
    this.#place.append(piece);
  }

  /**
   * Show a transcript. threshold: a confidence below it is marked; canPlay: whether times seek. Returns whether anything was marked.
   */
  show(transcript, threshold, canPlay) {
    this.clear();
    if (!transcript.text.trim()) {
      this.#place.append(made("p", "faint", text("nothing_said")));
      return false;
    }
    if (!transcript.segments.length) {
      this.#place.append(made("p", "said", transcript.text));
      return false;
    }
    const list = made("ol", "segments");
    for (const segment of transcript.segments) list.append(this.#segment(segment, threshold, canPlay));
    this.#place.append(list);
    return this.#place.querySelector(".unsure, .badge.doubt") !== null;
  }

  #segment(segment, threshold, canPlay) {
    const item = made("li", "segment");
    const head = made("p", "head");
    const when = this.#seeker("when", `${time(segment.start)} – ${time(segment.end)}`, segment.start, canPlay);
    when.prepend(made("span", "unseen", `${text("play")} `));
    head.append(when);
    if (segment.confidence < threshold) {
      head.append(made("span", "badge doubt", text("unsure_percent", { percent: percent(segment.confidence) })));
    }
    if (segment.no_speech === true || segment.no_speech_prob >= NO_SPEECH) head.append(made("span", "badge", text("no_speech")));
    const said = made("p", "said");
    let rest = segment.text;
    let first = true;
    for (const word of segment.words) {
      const at = rest.indexOf(word.word);
      if (at < 0) continue; // a word that is written another way in the text keeps its place there, without a time
      said.append(rest.slice(0, at), this.#word(word, threshold, canPlay, first));
      rest = rest.slice(at + word.word.length);
      first = false;
    }
    said.append(rest);
    item.append(head, said);
    this.#timed.push({ element: item, start: segment.start, end: segment.end });
    return item;
  }

  #word(word, threshold, canPlay, first) {
    const button = this.#seeker("word", word.word, word.start, canPlay);
    button.tabIndex = first ? 0 : -1; // arrows move among a segment's words, so that Tab does not stop at each
    if (Number.isFinite(word.confidence)) button.title = text("confidence", { percent: percent(word.confidence) });
    if (word.confidence < threshold) {
      button.classList.add("unsure");
      button.append(made("span", "unseen", ` (${text("unsure")})`));
    }
    this.#timed.push({ element: button, start: word.start, end: word.end });
    return button;
  }

  #seeker(kind, label, seconds, canPlay) {
    const button = made("button", kind, label);
    button.type = "button";
    button.disabled = !canPlay;
    button.addEventListener("click", () => this.#onSeek(seconds));
    return button;
  }

  #move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.classList.contains("word")) return;
    const words = [...event.target.parentElement.querySelectorAll(".word")];
    const next = words[words.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  /** Mark what is said at a time; null marks nothing. */
  moveTo(seconds) {
    for (const { element, start, end } of this.#timed) {
      const now = seconds !== null && start <= seconds && seconds < end;
      if (now) element.setAttribute("aria-current", "true");
      else element.removeAttribute("aria-current");
    }
  }
}

function made(kind, name, content = "") {
  const element = document.createElement(kind);
  element.className = name;
  element.textContent = content;
  return element;
}
