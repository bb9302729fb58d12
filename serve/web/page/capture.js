// The microphone's sound in blocks of 20 ms, on the audio thread.

const BLOCK = 960; // samples at 48 kHz

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this._samples = new Int16Array(BLOCK);
    this._count = this._energy = 0;
  }

  process([[channel]]) {
    if (!channel) return true;
    for (const sample of channel) {
      const limited = Math.max(-1, Math.min(1, sample));
      this._samples[this._count++] = Math.round(limited * 32767);
      this._energy += limited * limited;
      if (this._count === BLOCK) this._post();
    }
    return true;
  }

  _post() {
    const level = 10 * Math.log10(this._energy / BLOCK + 1e-10);
    this.port.postMessage({ samples: this._samples, level }, [this._samples.buffer]);
    this._samples = new Int16Array(BLOCK);
    this._count = this._energy = 0;
  }
}

registerProcessor("capture", Capture);
