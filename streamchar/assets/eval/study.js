// One rater, one pair at a time. Left and right are all that this page knows: which system is which lies elsewhere.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const store = "streamchar-study-" + data.study;
const ENOUGH = 0.9; // of a video with its sound, before it may be judged ...
const ENOUGH_SECONDS = 10; // ... or this much of a long one
const sides = ["left", "right"];
const videos = Object.fromEntries(sides.map((s) => [s, byId(s).querySelector("video")]));

const fresh = (rater) => ({ rater, started: "", at: 0, answers: {}, watched: {} });
let state = fresh("");
let question = 0;
let inTurn = false;
let together = false;
const broken = {};

function load(rater) { // each rater of a shared browser has their own answers
  state = fresh(rater);
  try {
    const kept = rater && localStorage.getItem(store + ":" + rater);
    if (kept) state = { ...state, ...JSON.parse(kept) };
  } catch (error) {
    byId("unsaved").hidden = false;
  }
}
function last() {
  try {
    localStorage.setItem(store + "-try", "1");
    localStorage.removeItem(store + "-try");
    return localStorage.getItem(store) || "";
  } catch (error) {
    byId("unsaved").hidden = false;
    return "";
  }
}
function keep() {
  try {
    localStorage.setItem(store, state.rater);
    localStorage.setItem(store + ":" + state.rater, JSON.stringify(state));
  } catch (error) {
    byId("unsaved").hidden = false;
  }
}

const pair = () => data.pairs[state.at];
const given = () => state.answers[pair().id] || {};
const complete = (p) => data.questions.every((q) => (state.answers[p.id] || {})[q.id]);
const watched = () => (state.watched[pair().id] ||= { left: 0, right: 0 });
const enough = (side) => {
  const length = videos[side].duration;
  return broken[side] || (length > 0 && watched()[side] >= Math.min(ENOUGH * length, ENOUGH_SECONDS));
};
const open = () => sides.every(enough) || complete(pair());

function show(name) {
  for (const id of ["intro", "trial", "end"]) byId(id).hidden = id !== name;
  if (name !== "trial") stop();
}
function stop() {
  inTurn = together = false;
  for (const s of sides) videos[s].pause();
}
function enter(at) {
  stop();
  state.at = at;
  for (const s of sides) {
    broken[s] = false;
    videos[s].src = "media/" + pair()[s];
    videos[s].load();
  }
  question = Math.max(0, data.questions.findIndex((q) => !given()[q.id]));
  keep();
  show("trial");
  draw();
  scrollTo(0, 0);
}
function finish() {
  const count = data.pairs.filter(complete).length;
  byId("summary").textContent = count === data.pairs.length
    ? `All ${count} pairs are answered.` : `${count} of ${data.pairs.length} pairs are answered.`;
  byId("text").value = JSON.stringify(answers(), null, 1);
  show("end");
}
function answers() {
  return { schema: data.schema, study: data.study, rater: state.rater, started: state.started,
    saved: new Date().toISOString(), answers: state.answers, watched: state.watched };
}

function draw() {
  const ready = open();
  byId("where").textContent = `Pair ${state.at + 1} of ${data.pairs.length}`;
  byId("done").style.width = (100 * data.pairs.filter(complete).length) / data.pairs.length + "%";
  for (const s of sides) {
    const on = !videos[s].paused && !videos[s].muted;
    byId(s).classList.toggle("on", on);
    byId(s).querySelector(".seen").textContent = broken[s] ? "cannot be played here" : enough(s) ? "seen ✓" : "";
  }
  byId("hint").textContent = sides.some((s) => broken[s]) ? "A video cannot be played here: go on to the next pair."
    : ready ? "" : "Watch both with sound first, then judge.";
  data.questions.forEach((q, i) => {
    const field = byId("q-" + q.id);
    field.classList.toggle("current", ready && i === question);
    field.classList.toggle("shut", !ready);
    field.querySelectorAll("button").forEach((b) => {
      b.disabled = !ready || sides.some((s) => broken[s]);
      b.setAttribute("aria-pressed", String(given()[q.id] === b.value));
    });
  });
  byId("back").disabled = state.at === 0;
  byId("next").disabled = !(complete(pair()) || sides.some((s) => broken[s]));
  byId("next").firstChild.textContent = state.at + 1 === data.pairs.length ? "Finish " : "Next pair ";
}

function play(side, restart) {
  together = false;
  for (const s of sides) if (s !== side) videos[s].pause();
  videos[side].muted = false;
  if (restart || videos[side].ended) videos[side].currentTime = 0;
  videos[side].play().catch(() => {});
}
function toggle(side) {
  inTurn = false;
  if (!videos[side].paused && !together) videos[side].pause();
  else play(side, false);
}
function turn() {
  if (sides.some((s) => !videos[s].paused)) { stop(); draw(); return; }
  inTurn = true;
  play("left", true);
}
function both() {
  if (together && !videos.left.paused) { stop(); return; }
  const heard = !videos.right.muted && !videos.right.paused ? "right" : "left";
  inTurn = false;
  together = true;
  for (const s of sides) {
    videos[s].muted = s !== heard;
    videos[s].currentTime = 0;
    videos[s].play().catch(() => {});
  }
}
function answer(choice) {
  if (!open() || sides.some((s) => broken[s])) return;
  (state.answers[pair().id] ||= {})[data.questions[question].id] = choice;
  keep();
  if (question + 1 < data.questions.length) question += 1;
  draw();
}
function forward() {
  if (byId("next").disabled) return;
  if (state.at + 1 < data.pairs.length) enter(state.at + 1);
  else { keep(); finish(); }
}

for (const q of data.questions) {
  const line = document.createElement("li");
  line.innerHTML = "<b></b>: <span></span>";
  line.querySelector("b").textContent = q.title;
  line.querySelector("span").textContent = q.text;
  byId("asked").append(line);
  const field = document.createElement("fieldset");
  field.id = "q-" + q.id;
  const text = document.createElement("p");
  text.append(q.text);
  const small = document.createElement("small");
  small.textContent = q.title;
  text.append(small);
  const choices = document.createElement("div");
  choices.className = "choices";
  choices.setAttribute("role", "group");
  choices.setAttribute("aria-label", q.text);
  for (const [value, label] of [["left", "Left"], ["same", "Same"], ["right", "Right"]]) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", value, textContent: label });
    button.addEventListener("click", () => { question = data.questions.indexOf(q); answer(value); });
    choices.append(button);
  }
  field.append(text, choices);
  byId("questions").append(field);
}

for (const s of sides) {
  const video = videos[s];
  let before = 0;
  video.addEventListener("timeupdate", () => {
    const step = video.currentTime - before;
    before = video.currentTime;
    if (step > 0 && step < 1 && !video.muted) { // a jump is not watching
      const was = enough(s);
      watched()[s] = Math.min(watched()[s] + step, video.duration);
      if (enough(s) !== was) { keep(); draw(); }
    }
  });
  video.addEventListener("seeking", () => { before = video.currentTime; });
  video.addEventListener("ended", () => {
    keep();
    if (inTurn && s === "left") play("right", true);
    else if (s === "right") inTurn = false;
    draw();
  });
  video.addEventListener("error", () => { broken[s] = true; draw(); });
  for (const kind of ["play", "pause", "volumechange", "loadedmetadata"]) video.addEventListener(kind, draw);
  video.addEventListener("click", () => toggle(s));
}
byId("turn").addEventListener("click", turn);
byId("both").addEventListener("click", both);
byId("next").addEventListener("click", forward);
byId("back").addEventListener("click", () => state.at > 0 && enter(state.at - 1));
byId("review").addEventListener("click", () => enter(0));
byId("start").addEventListener("submit", (event) => {
  event.preventDefault();
  load(byId("rater").value.trim() || "rater-" + Math.random().toString(36).slice(2, 8));
  state.started ||= new Date().toISOString();
  const first = data.pairs.findIndex((p) => !complete(p));
  if (first < 0) finish(); else enter(first);
});
byId("save").addEventListener("click", () => {
  const link = document.createElement("a");
  const name = state.rater.replace(/[^\w-]+/g, "-").replace(/^-+|-+$/g, "") || "rater";
  link.href = URL.createObjectURL(new Blob([JSON.stringify(answers(), null, 1) + "\n"], { type: "application/json" }));
  link.download = `answers-${data.study}-${name}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
addEventListener("keydown", (event) => {
  if (byId("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    " ": turn, b: both, 1: () => toggle("left"), 2: () => toggle("right"), Enter: forward,
    ArrowLeft: () => answer("left"), ArrowDown: () => answer("same"), ArrowRight: () => answer("right"),
    ArrowUp: () => { question = Math.max(0, question - 1); draw(); },
    Backspace: () => state.at > 0 && enter(state.at - 1),
  };
  const act = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act) { event.preventDefault(); act(); }
});
byId("rater").value = last();
if (byId("rater").value) byId("start").querySelector("button").textContent = "Go on";
