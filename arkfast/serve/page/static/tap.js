// Runs on the audio thread: gives the microphone's samples to the page, channels averaged, in blocks, and the rest when it is told to end.

const BLOCK = 4096;

class Tap extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(BLOCK);
    this.filled = 0;
    this.ended = false;
    this.port.onmessage = () => {
      this.give();
      this.ended = true;
      this.port.postMessage(null);
    };
  }

  give() {
    const samples = this.block.slice(0, this.filled);
    this.filled = 0;
    if (samples.length) this.port.postMessage(samples, [samples.buffer]);
  }

  process([channels]) {
    if (this.ended) return false;
    if (!channels.length) return true;
    for (let i = 0; i < channels[0].length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.block[this.filled++] = sum / channels.length;
      if (this.filled === BLOCK) this.give();
    }
    return true;
  }
}

registerProcessor("tap", Tap);
