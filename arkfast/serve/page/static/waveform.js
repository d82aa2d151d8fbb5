// Draws a recording on a canvas: its loudness, what is played just now, and while it is being recorded its last seconds.

import { text, time } from "./language.js";

const MOST_BYTES = 60e6; // decoded, a longer one would take gigabytes
const COLUMNS = 1000;
const RATE = 8000; // Hz, of which a picture needs no more

export class Waveform {
  #canvas;
  #peaks = [];
  #duration = 0;
  #at = 0;
  #live = false;

  /** onSeek is called with the seconds at which somebody clicked. */
  constructor(canvas, onSeek) {
    this.#canvas = canvas;
    canvas.addEventListener("click", (event) => {
      if (this.#duration && !this.#live) onSeek((this.#duration * event.offsetX) / canvas.clientWidth);
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Seconds of what is shown; 0 where nothing is. */
  get duration() {
    return this.#duration;
  }

  clear() {
    this.#set([], 0, false);
  }

  /** Show a file. Returns the name of a text that says why it is not shown, or null. Whoever shows another one meanwhile wins. */
  async show(file) {
    this.clear();
    if (file.size > MOST_BYTES) return "too_large_to_draw";
    const mine = this.#peaks;
    let sound;
    try {
      sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
    } catch {
      return this.#peaks === mine ? "not_drawn" : null;
    }
    if (this.#peaks === mine) this.#set(peaks(sound), sound.duration, false);
    return null;
  }

  /** Add a block's loudest sample to the picture of a recording under way. */
  add(loudest) {
    if (!this.#live) this.#set([], 0, true);
    this.#peaks.push(loudest);
    this.draw();
  }

  /** Mark what is played. */
  moveTo(seconds) {
    this.#at = seconds;
    this.draw();
  }

  #set(values, duration, live) {
    [this.#peaks, this.#duration, this.#live, this.#at] = [values, duration, live, 0];
    this.relabel();
    this.draw();
  }

  /** Say what is shown, in the page's language. */
  relabel() {
    this.#canvas.setAttribute("aria-label", text("waveform", { time: time(this.#duration) }));
  }

  draw() {
    const canvas = this.#canvas;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
    if (!width) return;
    [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const [quiet, played] = [style.getPropertyValue("--faint"), style.getPropertyValue("--accent")];
    const bar = 3 * scale;
    const bars = Math.floor(width / bar);
    const shown = this.#live ? this.#peaks.slice(-bars) : this.#peaks;
    const loudest = this.#live ? 1 : Math.max(0.05, shown.reduce((most, peak) => Math.max(most, peak), 0));
    const until = this.#duration ? (bars * this.#at) / this.#duration : 0;
    const column = (bar) => Math.floor((bar * shown.length) / bars);
    for (let i = 0; i < bars && shown.length; i++) {
      const stretch = this.#live ? [shown[i] ?? 0] : shown.slice(column(i), Math.max(column(i) + 1, column(i + 1)));
      const peak = Math.max(...stretch);
      const length = Math.max(scale, Math.sqrt(peak / loudest) * 0.94 * height); // the root shows quiet speech beside loud
      pen.fillStyle = i < until || this.#live ? played : quiet;
      pen.fillRect(i * bar, (height - length) / 2, 2 * scale, length);
    }
  }
}

/** The loudest sample of each of COLUMNS stretches, over all channels. */
function peaks(sound) {
  const found = new Array(Math.min(COLUMNS, sound.length)).fill(0);
  for (let c = 0; c < sound.numberOfChannels; c++) {
    const samples = sound.getChannelData(c);
    for (let i = 0; i < samples.length; i++) {
      const column = Math.floor((i * found.length) / samples.length);
      found[column] = Math.max(found[column], Math.abs(samples[i]));
    }
  }
  return found;
}
