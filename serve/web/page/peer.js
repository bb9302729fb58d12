// Picture and sound of a session, by WebRTC (WHEP).

import { NO_H264, NO_PICTURE, NO_WEBRTC, Problem, iceProblem } from "./problems.js";
import { request, token } from "./server.js";

const GATHERING_MS = 2000; // for candidates; a server that does not answer must not delay the others
const CONNECTING_MS = 20000;

/** Say why this browser can play no session; null if it can. */
export function unplayable() {
  if (!window.RTCPeerConnection) return NO_WEBRTC;
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs;
  return codecs && !codecs.some((codec) => codec.mimeType.toLowerCase() === "video/h264") ? NO_H264 : null;
}

/** A connection that receives. `stream` has both tracks. */
export class Peer {
  constructor(iceServers) {
    this._connection = new RTCPeerConnection({ iceServers });
    this._address = null;
    this._theirs = {};
    this._ours = {};
    this.stream = new MediaStream();
    for (const kind of ["video", "audio"]) {
      const { receiver } = this._connection.addTransceiver(kind, { direction: "recvonly" });
      receiver.jitterBufferTarget = 0;
      receiver.playoutDelayHint = 0;
    }
    this._connection.ontrack = ({ track }) => this.stream.addTrack(track);
    this._connection.onicecandidate = ({ candidate }) => candidate && count(this._ours, candidate.type);
  }

  /** Connect to a session. Calls `failed(problem)` if the connection fails later. Throws Problem. */
  async connect(session, failed) {
    await this._connection.setLocalDescription(await this._connection.createOffer());
    await this._gathered();
    const path = `whep/${session}`;
    const response = await request(path, {
      method: "POST",
      headers: { "Content-Type": "application/sdp" },
      body: this._connection.localDescription.sdp,
    });
    const location = response.headers.get("Location");
    if (location) this._address = new URL(location, new URL(path, document.baseURI));
    const sdp = await response.text();
    for (const [, type] of sdp.matchAll(/^a=candidate:.* typ (\w+)/gm)) count(this._theirs, type);
    await this._connection.setRemoteDescription({ type: "answer", sdp });
    await this._connected();
    this._connection.onconnectionstatechange = () => {
      if (this._connection.connectionState === "failed") failed(this._problem());
    };
  }

  /** RTCStatsReport of what was received. */
  stats() {
    return this._connection.getStats();
  }

  /** End it, also while the page goes away. `tell`: tell the server, and return when it knows. */
  async close(tell) {
    this._connection.onconnectionstatechange = this._connection.ontrack = null;
    if (tell && this._address) {
      const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
      await fetch(this._address, { method: "DELETE", keepalive: true, headers }).catch(() => {});
    }
    this._connection.close();
  }

  _gathered() {
    return new Promise((resolve) => {
      const done = () => this._connection.iceGatheringState === "complete" && resolve();
      this._connection.onicegatheringstatechange = done;
      setTimeout(resolve, GATHERING_MS);
      done();
    });
  }

  _connected() {
    return new Promise((resolve, reject) => {
      const look = () => {
        const state = this._connection.connectionState;
        if (state === "connected") resolve();
        if (state === "failed" || state === "closed") reject(this._problem());
      };
      this._connection.onconnectionstatechange = look;
      setTimeout(() => reject(this._problem()), CONNECTING_MS);
      look();
    });
  }

  _problem() {
    const connected = this._connection.iceConnectionState === "connected";
    return connected ? new Problem(NO_PICTURE) : iceProblem(this._ours, this._theirs);
  }
}

function count(counts, type) {
  counts[type] = (counts[type] ?? 0) + 1;
}
