// An audio file: decoded by the browser, sent in real time.

import { Problem, UNDECODABLE } from "./problems.js";
import { RATE } from "./microphone.js";

const MOST_BYTES = 300e6;
const PART = RATE / 10; // samples a message
const AHEAD_MS = 1000; // what is sent before its time: timers of a page in the background are slow
const TICK_MS = 50;
const MOST_WAITING = 1e6; // bytes, of a slow network

/** Return the samples of a file: Int16Array, mono at 48 kHz. Throws Problem. */
export async function decode(file) {
  if (file.size > MOST_BYTES) {
    throw new Problem(`The file has ${Math.round(file.size / 1e6)} MB. Expected at most ${MOST_BYTES / 1e6} MB.`);
  }
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Problem(UNDECODABLE);
  }
  const channels = Array.from({ length: sound.numberOfChannels }, (_, n) => sound.getChannelData(n));
  const samples = new Int16Array(sound.length);
  for (let n = 0; n < samples.length; n++) {
    let sum = 0;
    for (const channel of channels) sum += channel[n];
    samples[n] = Math.round(Math.max(-1, Math.min(1, sum / channels.length)) * 32767);
  }
  if (!samples.length) throw new Problem(UNDECODABLE);
  return samples;
}

/** Push samples to a socket in real time, a second ahead. Calls `progress(sent)` with the number of
 *  samples, and `done()` after the last ones. Returns a function that stops it. */
export function sendInTime(samples, socket, { progress, done }) {
  const begin = performance.now();
  let sent = 0;
  const send = () => {
    const due = ((performance.now() - begin + AHEAD_MS) / 1000) * RATE;
    while (sent < samples.length && sent < due && socket.waiting < MOST_WAITING) {
      socket.push(samples.slice(sent, sent + PART));
      sent = Math.min(samples.length, sent + PART);
    }
    progress(sent);
    if (sent === samples.length) {
      clearInterval(timer);
      done();
    }
  };
  const timer = setInterval(send, TICK_MS);
  send();
  return () => clearInterval(timer);
}
