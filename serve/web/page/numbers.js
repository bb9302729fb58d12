// Which frame of the session is on the screen.
//
// A frame has an RTP time stamp, which counts from a random number. The server's messages tell the
// number of the frame that it sends at the same time. The stamp of a frame that arrived just before
// such a message tells the stamp of frame 0, up to a frame or two; the median of some is exact.

const CLOCK = 90000; // of RTP's time stamps, Hz
const ROUND = 2 ** 32; // where the time stamps begin again
const TOLERANCE_MS = 5; // between a message and its frame
const LEAST = 3, MOST = 31; // messages

/** Numbers of frames by their RTP time stamps. */
export class FrameNumbers {
  constructor(fps) {
    this._ticks = CLOCK / fps;
    this._told = []; // {number, time}: messages whose frame is not on the screen yet
    this._last = null; // the last frame that was shown
    this._origins = []; // RTP time stamps of frame 0, from `_base`
    this._base = null;
  }

  /** Frame `number` was sent when a message arrived, at `time` in ms. */
  told(number, time) {
    this._told.push({ number, time });
    if (this._told.length > MOST) this._told.shift();
  }

  /** A frame with time stamp `rtp` is shown that arrived at `received` in ms. */
  shown(rtp, received) {
    while (this._told.length && received > this._told[0].time + TOLERANCE_MS) {
      const { number } = this._told.shift();
      if (this._last !== null) this._note(this._last - number * this._ticks);
    }
    this._last = rtp;
  }

  /** Return the number of the frame with a time stamp; null if it is not known yet. */
  of(rtp) {
    if (this._origins.length < LEAST) return null;
    const sorted = [...this._origins].sort((a, b) => a - b);
    const origin = this._base + sorted[sorted.length >> 1];
    return Math.round(wrapped(rtp - origin) / this._ticks);
  }

  _note(origin) {
    this._base ??= origin;
    this._origins.push(wrapped(origin - this._base));
    if (this._origins.length > MOST) this._origins.shift();
  }
}

/** Return a difference of time stamps between -2^31 and 2^31. */
function wrapped(difference) {
  return difference - ROUND * Math.round(difference / ROUND);
}
