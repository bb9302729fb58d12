// Which frame of the session has which RTP time stamp.

const CLOCK = 90000; // of the time stamps, Hz
const ROUND = 2 ** 32; // where they begin again

/** Return the number of a frame, from its time stamp and that of frame 0. */
export function frameNumber(rtp, origin, fps) {
  const ticks = rtp - origin;
  return Math.round(((ticks - ROUND * Math.floor(ticks / ROUND)) * fps) / CLOCK);
}
