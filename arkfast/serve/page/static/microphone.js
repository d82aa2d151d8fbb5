// Records the microphone as a 16-bit PCM WAV file, which every service reads, where a browser's own recorder would give WebM.

const HEADER = 44;

/** Why there is no recording; the message is the name of a text. */
export class NoMicrophone extends Error {}

/** What the page says of an error of getUserMedia. */
function reason(error) {
  if (error.name === "NotAllowedError" || error.name === "SecurityError") return "denied";
  if (error.name === "NotFoundError" || error.name === "OverconstrainedError") return "no_microphone";
  return "microphone_busy";
}

/** A recording under way. */
export class Recording {
  #stream;
  #context;
  #tap;
  #blocks = [];
  #samples = 0;
  #loudest = 0;
  #ended;

  /**
   * Ask for the microphone and begin.
   * most: {bytes, seconds} of the finished file. onBlock is called with (seconds so far, loudest of the block); onFull with the name of a text
   * when nothing more fits, or when the microphone is gone. Throws NoMicrophone.
   */
  static async begin(most, onBlock, onFull) {
    if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) throw new NoMicrophone("insecure");
    if (!window.AudioWorkletNode) throw new NoMicrophone("no_recorder");
    const recording = new Recording();
    try {
      // What browsers do for calls changes speech in ways that recognisers did not learn, and their gain clips what begins loudly.
      const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      recording.#stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw new NoMicrophone(reason(error), { cause: error });
    }
    try {
      await recording.#listen(most, onBlock, onFull);
    } catch (error) {
      recording.#close();
      throw new NoMicrophone("microphone_busy", { cause: error });
    }
    return recording;
  }

  async #listen(most, onBlock, onFull) {
    this.#context = new AudioContext();
    await this.#context.audioWorklet.addModule(new URL("tap.js", import.meta.url));
    this.#tap = new AudioWorkletNode(this.#context, "tap");
    const { promise, resolve } = withResolvers();
    this.#ended = promise;
    this.#tap.port.onmessage = ({ data }) => {
      if (data === null) return resolve();
      const samples = this.#samples + data.length;
      if (HEADER + 2 * samples > most.bytes || samples > most.seconds * this.#context.sampleRate) return onFull("recording_full");
      const loudest = this.#keep(data);
      onBlock(this.#samples / this.#context.sampleRate, loudest);
    };
    this.#stream.getAudioTracks()[0].addEventListener("ended", () => onFull("microphone_busy"));
    const source = this.#context.createMediaStreamSource(this.#stream);
    source.connect(this.#tap).connect(this.#context.destination); // nothing runs that leads nowhere; the tap gives silence
    await this.#context.resume();
  }

  #keep(samples) {
    const block = new DataView(new ArrayBuffer(2 * samples.length)); // 16 bits at once: an hour of floats would be twice as much
    let loudest = 0;
    samples.forEach((sample, i) => {
      loudest = Math.max(loudest, Math.abs(sample));
      block.setInt16(2 * i, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true);
    });
    this.#blocks.push(block.buffer);
    this.#samples += samples.length;
    this.#loudest = Math.max(this.#loudest, loudest);
    return loudest;
  }

  /** End it. Returns {file, silent}: the WAV file, and whether every sample is 0. */
  async end() {
    this.#tap.port.postMessage(null);
    // An audio thread that the system has suspended does not answer; what it gave before is kept.
    await Promise.race([this.#ended, new Promise((resolve) => setTimeout(resolve, 1000))]);
    const rate = this.#context.sampleRate;
    this.#close();
    const file = new File([header(this.#samples, rate), ...this.#blocks], "recording.wav", { type: "audio/wav" });
    return { file, silent: this.#loudest * 32767 < 0.5 };
  }

  #close() {
    for (const track of this.#stream.getTracks()) track.stop();
    this.#context?.close();
  }
}

function withResolvers() {
  const parts = {};
  parts.promise = new Promise((resolve) => { parts.resolve = resolve; });
  return parts;
}

/** The header of a mono WAV file of 16-bit samples. */
function header(samples, rate) {
  const view = new DataView(new ArrayBuffer(HEADER));
  const tag = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  tag(0, "RIFF");
  view.setUint32(4, HEADER - 8 + 2 * samples, true);
  tag(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true); // bytes a second
  view.setUint16(32, 2, true); // bytes of a sample of all channels
  view.setUint16(34, 16, true); // bits of a sample
  tag(36, "data");
  view.setUint32(40, 2 * samples, true);
  return view.buffer;
}
