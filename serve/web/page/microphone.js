// The microphone: 48 kHz mono, in blocks of 20 ms.

import { Problem, microphoneProblem } from "./problems.js";

export const RATE = 48000;
export const BLOCK_MS = 20;

/** Ask for the microphone, and call `hear(samples, level)` with each block: Int16Array and dB.
 *  `ended` is called when it is gone, such as unplugged. Throws Problem. */
export async function openMicrophone({ hear, ended }) {
  if (!navigator.mediaDevices?.getUserMedia) throw microphoneProblem();
  let stream, context;
  const close = () => {
    stream?.getTracks().forEach((track) => track.stop());
    context?.close();
  };
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
    const source = context.createMediaStreamSource(stream);
    const capture = new AudioWorkletNode(context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    capture.port.onmessage = ({ data }) => hear(data.samples, data.level);
    source.connect(capture);
    await context.resume();
  } catch (error) {
    close();
    throw error instanceof Problem ? error : microphoneProblem(error);
  }
  stream.getAudioTracks()[0].onended = () => {
    close();
    ended();
  };
  return { close };
}
