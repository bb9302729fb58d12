// The page: what is shown when, and what the controls do.

import { Figures } from "./figures.js";
import { RATE, openMicrophone } from "./microphone.js";
import { Peer, unplayable } from "./peer.js";
import { AUTOPLAY, NO_AVATAR, NO_PICTURE, Problem } from "./problems.js";
import { Socket, avatars, token } from "./server.js";
import { Speech } from "./speech.js";

const FIRST_FRAME_MS = 15000;
const STILL_THERE_MS = 20000; // a server ends sessions that nobody uses
const LEVELS = [-80, 0]; // dB, the ends of the level's bar

const ids = ["avatar", "frame", "video", "cover", "title", "message", "token-form", "token", "start",
  "play", "badge", "microphone", "microphone-state", "interrupt", "mute", "end", "note", "text-form",
  "text", "text-hint", "say", "file", "file-progress", "file-line", "level", "threshold",
  "sensitivity", "sensitivity-value", "interrupts", "figures-title"];
const at = Object.fromEntries(ids.map((id) => [id, document.getElementById(id)]));

let list = { avatars: [], voice: false, ice_servers: [] };
let session = null; // {socket, peer, speech, figures, live}
let microphone = null;
let said = ""; // the last text

// --- what is shown ---------------------------------------------------------------------------

/** Show the cover over the picture: `start` is what its button says, null for no button. */
function cover(state, title, message, start = null) {
  at.frame.dataset.state = state;
  at.cover.hidden = false;
  at.title.textContent = title;
  at.message.textContent = message;
  at["token-form"].hidden = state !== "token";
  at.start.hidden = start === null;
  at.start.textContent = start ?? "";
  at.play.hidden = at.badge.hidden = true;
  enable();
}

function note(text) {
  at.note.textContent = text;
}

/** Show what can be used now, and what the microphone does. */
function enable() {
  const live = session?.live ?? false;
  for (const id of ["microphone", "interrupt", "mute", "end", "file"]) at[id].disabled = !live;
  const voice = live ? session.socket.opened.voice : list.voice;
  at.text.disabled = at.say.disabled = !(live && voice);
  at["text-hint"].textContent =
    voice || !list.avatars.length
      ? "Enter speaks it, Shift+Enter begins a line."
      : "No voice here: set web.voice in the server's configuration.";
  at.avatar.disabled = session !== null || list.avatars.length < 2;
  at.microphone.setAttribute("aria-pressed", String(microphone !== null));
  at["microphone-state"].textContent = microphone ? "on" : "off";
  const source = session?.speech?.source;
  const saying = { microphone: "You are heard", file: "Saying the file", text: "Saying the text" }[source];
  at.badge.textContent = saying ?? (microphone ? "Listening" : "");
  at.badge.hidden = !live || !at.badge.textContent;
  at.badge.dataset.source = source ?? "";
}

function shape() {
  const chosen = session?.socket.opened ?? list.avatars.find(({ name }) => name === at.avatar.value);
  const [width, height] = [chosen?.width || 9, chosen?.height || 16];
  at.frame.style.setProperty("--ratio", String(width / height));
}

// --- the session -----------------------------------------------------------------------------

async function load() {
  cover("busy", "Connecting", "Asking the server which avatars it has.");
  const unable = unplayable();
  if (unable) return cover("problem", "This browser cannot show it", unable);
  try {
    list = await avatars();
  } catch (problem) {
    return fail(problem);
  }
  const before = at.avatar.value;
  at.avatar.replaceChildren(...list.avatars.map(({ name }) => new Option(name, name)));
  if (!list.avatars.length) {
    at.avatar.replaceChildren(new Option("–"));
    return cover("problem", "No avatar", NO_AVATAR, "Look again");
  }
  if (list.avatars.some(({ name }) => name === before)) at.avatar.value = before;
  shape();
  ready();
}

function ready() {
  cover("idle", at.avatar.value, "Start a session, then speak, type, or choose a file.", "Start");
}

async function start() {
  const chosen = list.avatars.find(({ name }) => name === at.avatar.value);
  if (!chosen) return load();
  const mine = (session = { live: false });
  const current = () => session === mine;
  note("");
  cover("busy", "Connecting", chosen.loaded === false ? "The avatar is being loaded." : "Opening a session.");
  at.end.disabled = false;
  try {
    mine.socket = await Socket.open(chosen.name, RATE);
    if (!current()) return mine.socket.close();
    mine.socket.addEventListener("closed", ({ detail }) => current() && fail(new Problem(detail)));
    mine.socket.addEventListener("unspoken", ({ detail }) => {
      note(detail.message);
      at.text.value ||= said; // to be mended
    });
    shape();
    at.message.textContent = "Connecting picture and sound.";
    mine.peer = new Peer(list.ice_servers ?? []);
    await mine.peer.connect(mine.socket.opened.session, (problem) => current() && fail(problem));
    if (!current()) return mine.peer.close();
    await show(mine);
    if (!current()) return;
  } catch (problem) {
    if (current()) fail(problem);
    return;
  }
  mine.figures = new Figures(at.video, mine.peer, mine.socket);
  mine.speech = new Speech(mine.socket, {
    began: (source, time) => mine.figures.began(source, time),
    dropped: () => mine.figures.dropped(),
    changed: () => current() && enable(),
    progress: filed,
  });
  adjust();
  mine.live = true;
  at.frame.dataset.state = "live";
  at["figures-title"].textContent = "This session";
  at.cover.hidden = true;
  at.video.setAttribute("aria-label", `The avatar ${chosen.name}`);
  enable();
  if (document.activeElement === document.body) at.microphone.focus();
}

/** Play a session's picture and sound. Returns with the first frame. */
async function show({ peer }) {
  at.video.srcObject = peer.stream;
  const first = new Promise((resolve, reject) => {
    at.video.addEventListener("loadeddata", resolve, { once: true });
    setTimeout(() => reject(new Problem(NO_PICTURE)), FIRST_FRAME_MS);
  });
  at.video.play().catch((error) => {
    if (error.name !== "NotAllowedError") return;
    at.play.hidden = false;
    note(AUTOPLAY);
  });
  await first;
}

/** End the session, if there is one. `tell`: the server does not know. `leaving`: the page goes. */
function close({ tell = false, leaving = false } = {}) {
  const ended = session;
  session = null;
  silence();
  if (ended?.figures) at["figures-title"].textContent = "The last session";
  ended?.figures?.close();
  ended?.speech?.close();
  const left = ended?.peer?.close(tell); // of a session that must still be there
  if (leaving) ended?.socket?.close();
  else Promise.resolve(left).then(() => ended?.socket?.close());
  at.video.srcObject = null;
  filed(0, 0);
}

function fail(problem) {
  const focused = at.end.closest(".bar").contains(document.activeElement);
  const title = session?.live ? "The session ended" : "No session";
  close();
  note("");
  if (!(problem instanceof Problem)) console.error(problem);
  if (problem.token) {
    token.forget();
    cover("token", "Token", problem.message);
    at.token.focus();
    return;
  }
  cover("problem", title, problem.message, "Try again");
  if (focused) at.start.focus();
}

function end() {
  close({ tell: true });
  note("");
  cover("ended", "Session ended", "Start another one whenever you like.", "Start again");
  at.start.focus();
}

// --- what is said ----------------------------------------------------------------------------

async function listen() {
  if (microphone) return silence();
  note("");
  at.microphone.disabled = true;
  const mine = session;
  try {
    const opened = await openMicrophone({ hear, ended: () => (silence(), note("The microphone is gone.")) });
    if (session === mine) microphone = opened;
    else opened.close();
  } catch (problem) {
    note(problem.message);
  }
  enable();
  if (!at.microphone.disabled) at.microphone.focus();
}

function silence() {
  microphone?.close();
  microphone = null;
  session?.speech?.deafen();
  at.level.style.setProperty("--level", "0");
  enable();
}

function hear(samples, level) {
  if (!microphone) return;
  session?.speech?.hear(samples, level);
  at.level.style.setProperty("--level", String(place(level)));
  at.level.dataset.voice = String(session?.speech?.gate.open ?? false);
}

function place(level) {
  return Math.max(0, Math.min(1, (level - LEVELS[0]) / (LEVELS[1] - LEVELS[0])));
}

/** Use what the settings say. */
function adjust() {
  const threshold = -Number(at.sensitivity.value);
  const text = `from −${at.sensitivity.value} dB`;
  at["sensitivity-value"].textContent = text;
  at.sensitivity.setAttribute("aria-valuetext", text);
  at.threshold.style.setProperty("--level", String(place(threshold)));
  if (!session?.speech) return;
  session.speech.gate.threshold = threshold;
  session.speech.interrupts = at.interrupts.checked;
}

function say(event) {
  event.preventDefault();
  const text = at.text.value.trim();
  if (!text || !session?.live) return;
  note("");
  session.speech.say(text);
  said = text;
  at.text.value = "";
}

async function play() {
  const [file] = at.file.files;
  if (!file || !session?.live) return;
  at["file-line"].textContent = "Decoding.";
  try {
    if (!(await session.speech.play(file))) filed(0, 0);
  } catch (problem) {
    at["file-line"].textContent = problem.message;
  }
  at.file.value = ""; // the same file may be chosen again
}

function filed(sent, all) {
  at["file-progress"].value = all ? sent / all : 0;
  const line = !all
    ? "Any format that this browser can decode."
    : sent < all
      ? `Sending: ${all.toFixed(1)} s of sound.`
      : `Sent: ${all.toFixed(1)} s of sound.`;
  if (at["file-line"].textContent !== line) at["file-line"].textContent = line;
}

function interrupt() {
  if (!session?.live) return;
  session.speech.interrupt();
  filed(0, 0);
}

// --- controls --------------------------------------------------------------------------------

at.start.addEventListener("click", () => (at.frame.dataset.state === "problem" && !session ? retry() : start()));
at.end.addEventListener("click", end);
at.microphone.addEventListener("click", listen);
at.interrupt.addEventListener("click", interrupt);
at.mute.addEventListener("click", () => {
  at.video.muted = !at.video.muted;
  at.mute.setAttribute("aria-pressed", String(at.video.muted));
});
at.play.addEventListener("click", () => {
  at.play.hidden = true;
  note("");
  at.video.play();
});
at["token-form"].addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(at.token.value.trim());
  at.token.value = "";
  load().then(() => at.start.hidden || at.start.focus());
});
at["text-form"].addEventListener("submit", say);
at.text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) say(event);
});
at.file.addEventListener("change", play);
at.sensitivity.addEventListener("input", adjust);
at.interrupts.addEventListener("change", adjust);
at.avatar.addEventListener("change", () => {
  shape();
  ready();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") interrupt();
});
window.addEventListener("pagehide", () => close({ tell: true, leaving: true }));
window.addEventListener("pageshow", ({ persisted }) => persisted && load());

async function retry() {
  await load();
  if (at.frame.dataset.state === "idle") start();
}

// Who has the microphone on is there, also without a word.
setInterval(() => microphone && session?.live && session.socket.push(new Int16Array(0)), STILL_THERE_MS);

adjust();
load();
