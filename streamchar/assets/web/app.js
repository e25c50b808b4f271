// The page: choices, what to say, and what is being said.

import { Player, supported } from "./player.js";
import { Session } from "./session.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token") || "";
const query = token ? `?token=${encodeURIComponent(token)}` : "";
const page = { words: [], times: new Map(), phase: "ready", picture: "", recording: "", character: 7, player: null, session: null, jumping: false, idleAt: null, awaited: null };
window.streamchar = page; // for curious people and for tests

function phase(name, text) {
  page.phase = name;
  $("state").textContent = text || name;
  $("state").dataset.phase = name;
  const live = page.session !== null;
  $("interrupt").disabled = !(live && name === "speaking");
  $("pause").disabled = !live || !["speaking", "listening", "paused"].includes(name);
  $("pause").textContent = name === "paused" ? "Resume" : "Pause";
  $("end").disabled = !live;
}

function note(text) {
  $("note").hidden = !text;
  $("note").textContent = text;
}

function complain(text) {
  $("error").hidden = !text;
  $("error").querySelector("p").textContent = text;
}

async function encoded(blob) {
  const url = await new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

// ---- words -------------------------------------------------------------------------------------

function addWords(first, words) {
  words.forEach((text, i) => {
    if (page.words[first + i]) return;
    const span = document.createElement("span");
    span.textContent = text;
    page.words[first + i] = span;
    $("words").append(span, " ");
  });
  $("words").scrollTop = $("words").scrollHeight;
}

function clearWords() {
  page.words = [];
  page.times.clear();
  $("words").replaceChildren();
  $("caption").replaceChildren();
}

let shown = "";

function follow() {
  requestAnimationFrame(follow);
  if (!page.player) return;
  const now = $("video").currentTime;
  if (page.idleAt !== null && now >= page.idleAt && page.phase === "speaking") phase("listening");
  if (page.awaited !== null && page.times.has(page.awaited) && now >= page.times.get(page.awaited).start) {
    $("word").textContent = `${((performance.now() - page.pressed) / 1000).toFixed(2)} s`;
    page.awaited = null;
  }
  let current = -1;
  for (const [index, word] of page.times) {
    const span = page.words[index];
    const here = now >= word.start && now < word.end;
    if (here) current = index;
    if (span) {
      span.classList.toggle("now", here);
      span.classList.toggle("spoken", now >= word.start);
      if (here && span !== page.lit) {
        page.lit = span;
        const box = $("words");
        if (span.offsetTop - box.offsetTop > box.scrollTop + box.clientHeight - 40) box.scrollTop = span.offsetTop - box.offsetTop - 40;
      }
    }
  }
  caption(current, now);
}

function caption(current, now) {
  const cue = cues().find((each) => now >= each.start - 0.05 && now < each.end + 0.5);
  const key = cue ? `${cue.indices[0]}:${current}` : "";
  if (key === shown) return;
  shown = key;
  $("caption").replaceChildren(...(cue ? cue.indices.flatMap((index) => {
    const word = document.createElement(index === current ? "b" : "span");
    word.textContent = page.times.get(index).text;
    return [word, " "];
  }) : []));
}

function cues() {
  if (page.cuesFor === page.times.size) return page.cues;
  const made = [];
  for (const [index, word] of page.times) {
    const last = made[made.length - 1];
    const text = last ? last.indices.map((i) => page.times.get(i).text).join(" ") : "";
    const fits = last && text.length + word.text.length < 42 && word.start - last.end < 0.7 && !/[.!?…]["”’)]?$/.test(text);
    if (fits) {
      last.indices.push(index);
      last.end = word.end;
    } else made.push({ start: word.start, end: word.end, indices: [index] });
  }
  page.cuesFor = page.times.size;
  page.cues = made;
  return made;
}

function vtt() {
  const clock = (s) => new Date(Math.max(0, s) * 1000).toISOString().slice(11, 23);
  const safe = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const lines = cues().map((cue) => `${clock(cue.start)} --> ${clock(cue.end)}\n${safe(cue.indices.map((i) => page.times.get(i).text).join(" "))}`);
  return ["WEBVTT", ...lines].join("\n\n") + "\n";
}

// ---- a session ---------------------------------------------------------------------------------

function begin(text) {
  finish();
  clearWords();
  complain("");
  note("");
  page.player = new Player($("video"));
  $("video").muted = false;
  page.pressed = performance.now();
  page.firstSeen = null;
  page.awaited = text ? 0 : null;
  const player = page.player;
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  page.session = new Session(`${scheme}://${location.host}/v1/session${query}`, {
    frames: () => Math.floor(player.end() * 24 + 0.001),
    queued: (event) => phase("queued", `waiting, place ${event.place}`),
    ready: (event) => {
      if (!supported(event.mime)) {
        page.session.stop();
        return complain("This browser cannot play the stream: it has no Media Source Extensions with H.264 and AAC.");
      }
      document.querySelector(".stage").style.setProperty("--ratio", event.width / event.height);
      player.begin(event.mime, event.frames, event.fps);
      addWords(0, event.words);
      phase(page.phase === "paused" ? "paused" : "listening");
      return undefined;
    },
    said: (event) => { page.idleAt = null; if (page.awaited === -1) page.awaited = event.first; addWords(event.first, event.words); phase(page.phase === "paused" ? "paused" : "speaking"); },
    spoken: (event) => { page.times.set(event.index, event); page.cuesFor = -1; },
    chunk: (event) => {
      if (page.jumping && event.kind === "listening") { player.jump(event.frames / 24); page.jumping = false; }
      if (page.phase === "queued" || (event.kind === "speech" && page.phase === "speaking")) {
        phase(event.kind === "speech" ? "speaking" : "listening"); // its place is back, or it has got ahead
      }
    },
    piece: (bytes) => { player.append(bytes); $("mp4").disabled = $("vtt").disabled = false; },
    notice: (event) => {
      note(`${event.message}.`);
      if (page.phase !== "paused") phase("speaking", `gets ahead, about ${Math.ceil(event.wait)} s`);
    },
    idle: (event) => { page.idleAt = event.frames / 24; note(""); },
    interrupted: (event) => {
      page.jumping = true;
      page.idleAt = null;
      for (const index of [...page.times.keys()]) if (index >= event.spoken) page.times.delete(index);
      page.words.forEach((span, index) => { if (index >= event.spoken && !span.classList.contains("spoken")) span.classList.add("dropped"); });
      page.cuesFor = -1;
      page.interrupted = event;
      if (page.phase !== "paused") phase("listening");
    },
    paused: () => { player.pause(); phase("paused"); },
    resumed: () => { player.resume(); phase(page.idleAt === null ? "speaking" : "listening"); },
    stats: (event) => {
      page.stats = event;
      $("factor").textContent = event.factor ? `${event.factor.toFixed(1)} ×` : "–";
      $("lead").textContent = `${event.lead.toFixed(1)} s`;
      $("sessions").textContent = `${event.sessions} of ${event.capacity}${event.waiting ? `, ${event.waiting} wait` : ""}`;
    },
    stopped: (event) => { if (event.reason === "restart") phase("queued", "the server restarts"); },
    error: (event) => {
      complain(`${event.message}${event.hint ? `: ${event.hint}` : ""}.`);
      $("video").muted = false;
    },
    lost: (attempt) => phase("queued", `connection lost, attempt ${attempt}`),
    over: (reason) => {
      page.session = null;
      player.finish();
      if (reason === "lost") complain("The connection was lost and could not be made again. Press Speak to start anew.");
      phase("ready", "ready");
    },
  });
  phase("queued", "starting");
  page.session.start({
    character: page.character, picture: page.picture, prompt: $("prompt").value.trim(), voice: Number($("voice").value),
    recording: page.recording, seed: Math.floor(Math.random() * 2 ** 31), text,
  });
}

function finish() {
  if (page.session) { page.session.stop(); page.session.close(); page.session = null; }
  if (page.player) { page.player.close(); page.player = null; }
  $("video").parentElement.classList.remove("live");
  phase("ready", "ready");
}

function speak() {
  const text = $("text").value.trim();
  if (!text) return $("text").focus();
  complain("");
  if (page.session && page.phase === "listening") [page.pressed, page.awaited] = [performance.now(), -1];
  if (page.session) page.session.say(text);
  else begin(text);
  $("text").value = "";
  return $("text").focus();
}

function interrupt() {
  if (!page.session || page.phase !== "speaking") return;
  $("video").muted = true;
  page.session.send({ type: "interrupt", at: $("video").currentTime });
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- choices -----------------------------------------------------------------------------------

function choose(character) {
  page.character = character;
  page.picture = "";
  for (const button of $("gallery").children) {
    const chosen = Number(button.dataset.seed) === character;
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
  if (character >= 0) $("poster").src = `v1/characters/${character}.png${query}`;
  finish();
}

function furnish(about) {
  for (const one of about.characters) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.seed = one.seed;
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", one.about);
    button.title = one.about;
    const image = new Image();
    image.alt = "";
    image.src = `v1/characters/${one.seed}.png${query}`;
    button.append(image);
    button.onclick = () => choose(one.seed);
    $("gallery").append(button);
  }
  $("gallery").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...$("gallery").children];
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    next.focus();
    next.click();
  };
  for (const prompt of about.prompts) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = prompt;
    chip.setAttribute("aria-pressed", false);
    chip.onclick = () => { $("prompt").value = $("prompt").value === prompt ? "" : prompt; press(); };
    $("chips").append(chip);
  }
  const press = () => { for (const chip of $("chips").children) chip.setAttribute("aria-pressed", chip.textContent === $("prompt").value); };
  $("prompt").oninput = press;
  $("prompt").onchange = () => { if (page.session) finish(); };
  $("chips").addEventListener("click", () => { if (page.session) finish(); });
  $("voice").append(new Option("the character's own", -1), ...about.voices.map((name, index) => new Option(name, index)));
  $("voice").onchange = () => { page.recording = ""; $("voiceNote").textContent = ""; finish(); };
  $("pictureNote").textContent = about.pictures ? "" : "This model draws cartoons: a photograph comes out smeared.";
  $("text").maxLength = about.text;
  choose(about.characters[0].seed);
}

async function record() {
  if (page.recorder) return page.recorder.stop();
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    return complain("A browser records on https pages and on localhost only. Choose a voice from the list.");
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const parts = [];
    page.recorder = new MediaRecorder(stream);
    page.recorder.ondataavailable = (event) => parts.push(event.data);
    page.recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      page.recording = await encoded(new Blob(parts));
      page.recorder = null;
      $("record").textContent = "Record mine";
      $("voiceNote").textContent = "Your recording is used from the next start on. It leaves this page only for this server.";
      finish();
    };
    page.recorder.start();
    $("record").textContent = "Stop recording";
    setTimeout(() => page.recorder && page.recorder.stop(), 6000);
  } catch (error) {
    complain(`The microphone cannot be used: ${error.message}`);
  }
  return undefined;
}

async function main() {
  $("form").onsubmit = (event) => { event.preventDefault(); speak(); };
  $("text").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); speak(); } };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") interrupt(); });
  $("interrupt").onclick = interrupt;
  $("pause").onclick = () => page.session.send({ type: page.phase === "paused" ? "resume" : "pause" });
  $("end").onclick = () => { if (page.session) page.session.stop(); };
  $("mp4").onclick = () => page.player && page.player.files().forEach((file, i) => save(file, `take-${i + 1}.mp4`));
  $("vtt").onclick = () => save(new Blob([vtt()], { type: "text/vtt" }), "take.vtt");
  $("error").querySelector("button").onclick = () => complain("");
  $("record").onclick = record;
  $("picture").onchange = async () => {
    const file = $("picture").files[0];
    if (!file) return;
    if (file.size > 8 * 2 ** 20) { complain("The picture may have at most 8 MiB."); return; }
    choose(-1);
    page.character = 0;
    page.picture = await encoded(file);
    $("poster").src = URL.createObjectURL(file);
  };
  $("video").addEventListener("playing", () => {
    $("video").parentElement.classList.add("live");
    if (page.firstSeen === null) {
      page.firstSeen = performance.now() - page.pressed;
      $("first").textContent = `${(page.firstSeen / 1000).toFixed(2)} s`;
    }
  });
  setInterval(() => { if (page.session && page.player && page.player.buffer) page.session.send({ type: "playhead", at: $("video").currentTime }); }, 500);
  follow();
  try {
    const answer = await fetch(`v1/about${query}`);
    const about = await answer.json();
    if (!answer.ok) throw new Error(`${about.message}; ${about.hint}`);
    furnish(about);
    $("speak").disabled = false;
    phase("ready", `ready, model ${about.model}`);
  } catch (error) {
    phase("lost", "no connection");
    complain(String(error.message || error));
  }
}

main();
