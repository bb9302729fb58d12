// The figures of a session: measured, or "–".

import { frameNumber } from "./numbers.js";

const NONE = "–";
const KEPT = 300; // frames that were shown
const WINDOW_MS = 2000; // of frames that are counted
const STILL_MS = 200; // without a frame: the picture stands still
const FORGOTTEN_MS = 40000; // an utterance of which nothing was shown

const element = (id) => document.getElementById(id);

function show(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}

/** What is measured of a session's video, connection and socket, until `close`. */
export class Figures {
  constructor(video, peer, socket) {
    Object.assign(this, { _video: video, _peer: peer, _opened: socket.opened });
    this._shown = []; // {rtp, displayed, presented}
    this._origin = null; // RTP time stamp of frame 0
    this._utterances = []; // {source, time}
    this._sought = null; // {utterance, number}
    this._interruptions = 0; // up to whose answer the server tells of what was dropped
    this._bytes = null;
    this._closed = false;
    clear();
    const { width, height, runtime, capacity, sessions } = this._opened;
    show("size", `${width} × ${height}`);
    show("runtime", runtime ?? NONE);
    this._sessions(sessions, capacity);
    socket.addEventListener("speaking", ({ detail }) => this._speaks(detail));
    socket.addEventListener("end", () => this._interruptions || this._utterances.shift());
    socket.addEventListener("interrupted", () => this._interruptions--);
    socket.addEventListener("stats", ({ detail }) => this._counted(detail));
    if (video.requestVideoFrameCallback) this._watch();
    this._timer = setInterval(() => this._tick(), 1000);
  }

  /** An utterance began: its first sound is of `time` (performance.now()). */
  began(source, time) {
    const now = performance.now();
    this._utterances = this._utterances.filter((utterance) => now - utterance.time < FORGOTTEN_MS);
    this._utterances.push({ source, time });
  }

  /** What began is not to be said: the server is asked to interrupt it. */
  dropped() {
    this._interruptions++;
    this._utterances = [];
    this._sought = null;
  }

  close() {
    this._closed = true;
    clearInterval(this._timer);
  }

  // --- delay ---------------------------------------------------------------------------------

  _watch() {
    this._video.requestVideoFrameCallback((_, frame) => {
      if (this._closed) return;
      const { rtpTimestamp, expectedDisplayTime, presentedFrames } = frame;
      this._shown.push({ rtp: rtpTimestamp, displayed: expectedDisplayTime, presented: presentedFrames });
      if (this._shown.length > KEPT) this._shown.shift();
      this._find();
      this._watch();
    });
  }

  /** Speech begins or ends with the frame of a number. */
  _speaks({ speaking, number }) {
    if (this._interruptions) return;
    const utterance = this._utterances[0];
    if (!speaking || !utterance || utterance.sought) return;
    utterance.sought = true;
    this._sought = { utterance, number };
  }

  /** Look whether the first frame of an utterance was shown, or the first one after it. */
  _find() {
    if (!this._sought || this._origin === null) return;
    const { utterance, number } = this._sought;
    const found = this._shown.find(
      ({ rtp }) => frameNumber(rtp, this._origin, this._opened.fps) >= number,
    );
    if (!found) return;
    this._sought = null;
    show("delay", `${((found.displayed - utterance.time) / 1000).toFixed(2)} s`);
    show("delay-of", `(${utterance.source})`);
  }

  // --- each second ---------------------------------------------------------------------------

  async _tick() {
    this._rate();
    let report;
    try {
      report = await this._peer.stats();
    } catch {
      return;
    }
    if (this._closed) return;
    let bytes = 0, time = 0;
    for (const entry of report.values()) {
      if (entry.type !== "inbound-rtp") continue;
      bytes += entry.bytesReceived + (entry.headerBytesReceived ?? 0);
      time = entry.timestamp;
    }
    if (this._bytes && time > this._bytes.time) {
      const rate = (8 * (bytes - this._bytes.bytes)) / (time - this._bytes.time); // kbit/s
      show("bitrate", rate < 1000 ? `${rate.toFixed(0)} kbit/s` : `${(rate / 1000).toFixed(1)} Mbit/s`);
    }
    if (time) this._bytes = { bytes, time };
  }

  _rate() {
    if (document.hidden) {
      this._shown.length = 0; // a hidden page is shown nothing
      show("fps", NONE);
      return;
    }
    const now = performance.now();
    const first = this._shown.findLast(({ displayed }) => displayed <= now - WINDOW_MS);
    if (!first) return;
    const last = this._shown.at(-1);
    const end = now - last.displayed < STILL_MS ? last.displayed : now;
    const rate = (1000 * (last.presented - first.presented)) / (end - first.displayed);
    show("fps", `${rate.toFixed(1)} of ${Number(this._opened.fps).toFixed(0)}`);
  }

  _counted({ frames, rtp, late, skipped, sessions }) {
    this._origin = rtp ?? null;
    const share = frames ? ` (${((100 * late) / frames).toFixed(1)} %)` : "";
    show("late", late ? `${late}${share}` : "0");
    show("skipped", `${skipped}`);
    this._sessions(sessions, this._opened.capacity);
  }

  _sessions(sessions, capacity) {
    show("sessions", sessions == null ? NONE : capacity == null ? `${sessions}` : `${sessions} of ${capacity}`);
  }
}

function clear() {
  for (const id of ["delay", "fps", "late", "skipped", "bitrate", "sessions", "size", "runtime"]) {
    show(id, NONE);
  }
  show("delay-of", "");
}
