// The server's addresses: the list of avatars, and the socket of a session.

import { GONE, LOST, NO_SOCKET, Problem, refusal } from "./problems.js";

const KEY = "viseme.token";
const REFUSED = 1008;

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Fetch an address relative to the page's, with the token. Throws Problem. */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token.get()) headers.set("Authorization", `Bearer ${token.get()}`);
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { cache: "no-store", ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(GONE);
  }
  if (!response.ok) throw refusal(response.status, await lineOf(response), token.get() !== "");
  return response;
}

/** The server's line; "" if a proxy has answered with a page. */
async function lineOf(response) {
  const text = (await response.text().catch(() => "")).trim();
  return text.startsWith("<") ? "" : text.slice(0, 300);
}

/** Say what the server has: see GET /v1/avatars. */
export async function avatars() {
  return (await request("v1/avatars")).json();
}

/** The socket of a session: speech goes in, events come out as events of the server's names.
 *  Event "closed" has the line that says why. */
export class Socket extends EventTarget {
  /** Open a session. Throws Problem. */
  static async open(avatar, rate) {
    const address = new URL("v1/live", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    address.searchParams.set("avatar", avatar);
    const socket = new Socket(new WebSocket(address));
    await socket._begin(rate);
    return socket;
  }

  constructor(socket) {
    super();
    this._socket = socket;
    this._socket.binaryType = "arraybuffer";
    this._line = null; // of the server's error
    this._closing = false;
  }

  /** Bytes that are not on their way yet. */
  get waiting() {
    return this._socket.bufferedAmount;
  }

  push(samples) {
    if (this._socket.readyState === WebSocket.OPEN) this._socket.send(samples);
  }

  tell(message) {
    if (this._socket.readyState === WebSocket.OPEN) this._socket.send(JSON.stringify(message));
  }

  close() {
    this._closing = true;
    this.tell({ type: "close" });
    this._socket.close(1000);
  }

  _begin(rate) {
    return new Promise((resolve, reject) => {
      this._socket.onopen = () => {
        const open = { type: "open", sample_rate: rate, channels: 1, sample_format: "s16", picture: "none" };
        this.tell(token.get() ? { ...open, token: token.get() } : open);
      };
      this._socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return;
        const message = JSON.parse(data);
        if (message.type === "error") this._line = message.message;
        if (message.type === "opened") {
          this.opened = message;
          resolve();
        }
        this.dispatchEvent(new CustomEvent(message.type, { detail: message }));
      };
      this._socket.onclose = async ({ code, reason }) => {
        if (!this.opened) reject(await this._refusal(code, reason));
        else if (!this._closing) {
          this.dispatchEvent(new CustomEvent("closed", { detail: this._line || reason || LOST }));
        }
      };
    });
  }

  /** Say why no session came about. A refused upgrade tells a page nothing, so ask again. */
  async _refusal(code, reason) {
    const line = this._line || reason;
    if (line) return new Problem(line, { token: code === REFUSED && /\btoken\b/.test(line) });
    try {
      await avatars();
    } catch (problem) {
      return problem;
    }
    return new Problem(NO_SOCKET);
  }
}
