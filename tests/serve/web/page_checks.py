"""What tests look at in a page, as JavaScript."""

# Texts whose contrast with what is behind them is too low: [text, contrast], as WCAG computes it.
LOW_CONTRAST = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color(srgb") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = (top, below) => below.map((v, n) => n < 3 ? top[n] * top[3] + v * (1 - top[3]) : 1);
  const behind = (element) => {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.push(parse(getComputedStyle(e).backgroundColor));
    return chain.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((p, q) => p - q);
    return (high + 0.05) / (low + 0.05);
  };
  const faults = [];
  let texts = 0, edges = 0;
  for (const element of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!box.width || !box.height || style.visibility !== "visible") continue;
    if (element.closest(":disabled, [aria-hidden=true], video, option")) continue;
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    const ground = behind(element);
    if (text) {
      texts++;
      const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
      const least = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
      const found = contrast(over(parse(style.color), ground), ground);
      if (found < least) faults.push([text.slice(0, 40), found]);
    }
    if (element.matches("button:not(.primary), select, textarea, input:not([type=file], [type=range], [type=checkbox])")) {
      edges++;
      const found = contrast(over(parse(style.borderTopColor), behind(element.parentElement)), behind(element.parentElement));
      if (found < 3) faults.push([`edge of ${element.id}`, found]);
    }
  }
  return { texts, edges, faults };
}"""

# Where things are, to a pixel.
PLACES = """() => Object.fromEntries(["header", "#frame", ".bar", "#microphone", "#interrupt", "#end",
  ".talk", "#text-form", "#say", "#file", "#sensitivity", ".figures", "dl :has(> #delay)",
  "dl :has(> #runtime)"].map((name) => {
    const { x, y, width, height } = document.querySelector(name).getBoundingClientRect();
    return [name, [x, y + scrollY, width, height].map(Math.round)];
  }))"""

# What has the focus, and whether one sees it: [id or tag, outline in pixels].
FOCUSED = """() => {
  const style = getComputedStyle(document.activeElement);
  const outline = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
  return [document.activeElement.id || document.activeElement.tagName.toLowerCase(), outline];
}"""

# Begins to note frames and sound in `window.noted`. A frame is [RTP time stamp, time of its
# display (ms), brightness of the mouth]; a piece of sound [time (ms), power];
# a state of the connection [time, NTP time that is heard (ms), seen, frames received, dropped].
NOTE = """(box) => {
  const video = document.getElementById("video");
  const noted = window.noted = { frames: [], sound: [], states: [] }; // whose lists tests replace
  const canvas = new OffscreenCanvas(8, 8).getContext("2d", { willReadFrequently: true });
  const frame = (now, at) => {
    canvas.drawImage(video, ...box, 0, 0, 8, 8);
    const pixels = canvas.getImageData(0, 0, 8, 8).data;
    let sum = 0;
    for (let n = 0; n < pixels.length; n += 4) sum += pixels[n];
    noted.frames.push([at.rtpTimestamp, at.expectedDisplayTime, sum / 64]);
    video.requestVideoFrameCallback(frame);
  };
  video.requestVideoFrameCallback(frame);
  const track = video.srcObject.getAudioTracks()[0].clone();
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  const hear = async () => {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const samples = new Float32Array(value.numberOfFrames);
      value.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
      noted.sound.push([performance.now(), samples.reduce((sum, v) => sum + v * v, 0) / samples.length]);
      value.close();
    }
  };
  hear();
  setInterval(async () => {
    const found = {};
    for (const entry of (await window.connection.getStats()).values()) {
      if (entry.type === "inbound-rtp") found[entry.kind] = entry;
      if (entry.type === "media-playout") found.device = entry;
    }
    const { audio, video, device } = found;
    if (audio?.estimatedPlayoutTimestamp && video?.estimatedPlayoutTimestamp) {
      const delay = 1000 * device.totalPlayoutDelay / device.totalSamplesCount;
      noted.states.push([audio.timestamp - performance.timeOrigin,
        audio.estimatedPlayoutTimestamp + delay, video.estimatedPlayoutTimestamp,
        video.framesReceived, video.framesDropped, delay]);
    }
  }, 100);
}"""

# Keeps the page's connection where NOTE finds it.
KEEP_CONNECTION = """
  const Connection = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Connection {
    constructor(...rest) { super(...rest); window.connection = this; }
  };
"""

# Keeps the messages of the page's socket: those that came in `window.messages`, those that were sent
# in `window.sent`, and in `window.told` the last one that was sent when a click or a key was handled.
KEEP_MESSAGES = """
  const Socket = window.WebSocket;
  Object.assign(window, { messages: [], sent: [], told: null });
  window.WebSocket = class extends Socket {
    constructor(...rest) {
      super(...rest);
      this.addEventListener("message", ({ data }) => window.messages.push(JSON.parse(data)));
    }
    send(data) {
      if (typeof data === "string") window.sent.push(JSON.parse(data).type);
      super.send(data);
    }
  };
  for (const type of ["click", "keydown"]) {
    addEventListener(type, () => setTimeout(() => window.told = window.sent.at(-1)), true);
  }
"""
