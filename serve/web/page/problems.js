// What went wrong, in one line that says what to do about it.

/** A line for the person at the page. `token`: whether a token would help. */
export class Problem extends Error {
  constructor(line, { token = false } = {}) {
    super(line);
    this.token = token;
  }
}

const PORTS = "Set web.ice_servers in the server's configuration to a TURN server, or open its UDP ports to this machine.";

export const GONE = "The server does not answer. It may have been stopped, or the network is down.";
export const NO_AVATAR =
  "This server has no avatar. Start it with --avatar NAME=DIR, or name one under models in its configuration.";
export const NO_H264 =
  "This browser cannot play H.264 video over WebRTC. Use one that can, such as Chrome, Edge, Safari or Firefox.";
export const NO_WEBRTC = "This browser has no WebRTC, or it is switched off.";
export const NO_SOCKET =
  "The server answers, but not to WebSockets. A proxy in between must pass their upgrade on.";
export const NO_PICTURE =
  "Connected, but no picture came. The server's log says why, or the browser cannot decode it.";
export const LOST = "The connection was lost. The server may have been stopped, or the network is down.";
export const AUTOPLAY = "The browser waits for you before it plays sound.";
export const UNDECODABLE = "This browser cannot decode the file. Expected audio such as WAV, MP3, AAC, Ogg or FLAC.";

/** Why there is no microphone. */
export function microphoneProblem(error) {
  if (!window.isSecureContext) {
    return new Problem(
      `A browser gives the microphone only to https:// pages and localhost, not to ${location.origin}. Use one of those.`,
    );
  }
  const lines = {
    NotAllowedError: "The microphone is blocked. Allow it for this page in the browser's address bar or settings.",
    NotFoundError: "No microphone was found. Plug one in, and try again.",
    NotReadableError: "The microphone cannot be read. Another program may be using it.",
    NotSupportedError: "This browser cannot read the microphone at 48 kHz. Set the device to 48 kHz, or use another browser.",
  };
  const line = error ? lines[error.name] : "This browser gives pages no microphone.";
  return new Problem(line ?? `The microphone cannot be used: ${error.message}`);
}

/** Why no connection came about. `ours` and `theirs`: how many candidates of which type. */
export function iceProblem(ours, theirs) {
  const list = (counts) =>
    ["host", "srflx", "relay"].map((type) => `${counts[type] ?? 0} ${type}`).join(", ");
  return new Problem(
    `No network path to the server. Tried: ${list(ours)} here; ${list(theirs)} there. ${PORTS}`,
  );
}

/** Why the server refused. `sent`: whether a token was sent. */
export function refusal(status, line, sent) {
  if (status === 401) {
    return new Problem(sent ? "The server does not take this token." : "This server wants a token.", { token: true });
  }
  return new Problem(line || `The server refused (${status}).`);
}
