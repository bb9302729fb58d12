// What the avatar says: one source at a time, because the session is one stream.
//
// A text, a file or the microphone. A new one replaces the one before (a text only follows a text).
// The microphone is sent while it hears a voice. While a text or a file is being said, it is not
// sent: there a voice interrupts what is being said, and is then sent itself, from its first sound.

import { decode, sendInTime } from "./file.js";
import { Gate } from "./gate.js";
import { BLOCK_MS, RATE } from "./microphone.js";

const KEPT = 15; // blocks of the microphone that are sent when a voice is heard: 0.3 s
const INTERRUPTING_MS = 120; // of voice: what the loudspeakers leave of the avatar's is shorter
const PAUSE_MS = 300; // before the microphone is sent again after an interruption by hand
const OVER_MS = 700; // of silence between a text's sentences at most
const FIRST_MS = 30000; // until a text is heard at most

/** Sends speech to a session's socket.
 *
 *  began(source, time): an utterance's first sound was sent; `time` is that of the sound
 *  dropped(): what was sent is not to be said
 *  changed(): the source is another one
 *  progress(sent, all): seconds of the file */
export class Speech {
  constructor(socket, { began, dropped, changed, progress }) {
    Object.assign(this, { _socket: socket, _began: began, _dropped: dropped });
    Object.assign(this, { _changed: changed, _progress: progress });
    this.source = null; // "microphone", "file", "text"
    this.interrupts = true; // whether a voice interrupts a text or a file
    this.gate = new Gate();
    this._kept = []; // the microphone's last blocks
    this._stop = null; // sending of the file
    this._job = 0; // a file that is still being decoded when another begins is not sent
    this._speaking = false; // the avatar
    this._heard = false; // something since the source began
    this._timer = 0;
    socket.addEventListener("unspoken", () => this.source === "text" && this._over());
    socket.addEventListener("speaking", ({ detail }) => this._speaks(detail.speaking));
  }

  /** Take a block of the microphone. */
  hear(samples, level) {
    const busy = this.source === "file" || this.source === "text";
    this._kept.push(samples);
    if (this._kept.length > KEPT) this._kept.shift();
    const voice = this.gate.hear(level, BLOCK_MS, busy ? INTERRUPTING_MS : undefined);
    if (busy && !(voice && this.interrupts)) return;
    if (voice && this.source !== "microphone") {
      if (busy) this._drop();
      this._begin("microphone", performance.now() - this._kept.length * BLOCK_MS);
      for (const block of this._kept) this._socket.push(block);
    } else if (this.source === "microphone") {
      this._socket.push(samples);
      if (!voice) this._finishMicrophone();
    }
  }

  /** The microphone was switched off. */
  deafen() {
    this.gate.close();
    this._kept = [];
    if (this.source === "microphone") this._finishMicrophone();
  }

  /** Say a text, after one that is being said. */
  say(text) {
    this._job++;
    if (this.source !== "text") this._replace();
    this._begin("text", performance.now());
    this._socket.tell({ type: "say", text });
    this._overAfter(FIRST_MS);
  }

  /** Say a file. Throws Problem. Returns false if something else began meanwhile. */
  async play(file) {
    this._replace();
    const job = ++this._job;
    const samples = await decode(file);
    if (job !== this._job) return false;
    this._replace();
    const seconds = samples.length / RATE;
    this._begin("file", performance.now());
    this._stop = sendInTime(samples, this._socket, {
      progress: (sent) => this._progress(sent / RATE, seconds),
      done: () => {
        this._stop = null;
        this._heard = this._speaking;
        this._socket.tell({ type: "flush" });
        this._overAfter(FIRST_MS);
      },
    });
    return true;
  }

  /** Stop saying anything. */
  interrupt() {
    this._job++;
    this.gate.close(PAUSE_MS);
    this._kept = [];
    this._drop();
  }

  /** The session ended. */
  close() {
    this._job++;
    this._cancel();
    this.source = null;
  }

  _begin(source, time) {
    this.source = source;
    this._heard = false;
    this._began(source, time);
    this._changed();
  }

  _finishMicrophone() {
    this._socket.tell({ type: "flush" });
    this._over();
  }

  _replace() {
    if (this.source) this._drop();
  }

  _drop() {
    this._cancel();
    this._socket.tell({ type: "interrupt" });
    this._dropped();
    this._over();
  }

  _cancel() {
    if (this._stop) {
      this._stop();
      this._stop = null;
      this._progress(0, 0);
    }
    clearTimeout(this._timer);
  }

  /** The server says whether the avatar speaks. */
  _speaks(speaking) {
    this._speaking = speaking;
    if (this.source !== "text" && (this.source !== "file" || this._stop)) return;
    if (speaking) this._heard = true;
    else if (this._heard) this._overAfter(OVER_MS); // else it was what was said before
  }

  _overAfter(ms) {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => (this._speaking ? this._overAfter(OVER_MS) : this._over()), ms);
  }

  _over() {
    clearTimeout(this._timer);
    this.source = null;
    this._changed();
  }
}
