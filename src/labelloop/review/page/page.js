// The review page: one question at a time, answered by keys. All data come from the server of the same address.
import { Viewer, canShow, onBlack } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const SET = ""; // the label map that is asked about; the others have the names of their models
const TOOLS = { b: "brush", x: "eraser", f: "outline", r: "cut" };

let queue = null; // what the server says of all questions
let at = -1; // the question that is shown
let whole = false; // all of the image, or the organ alone
let shown = null; // what is loaded of it; null: not yet, or it cannot be
let failed = false; // it cannot be
let map = SET;
let preset = 0;
let viewer = null;
let editing = false;
let brush = 8; // mm
let busy = false;
let drafting = 0; // the timer that keeps what is drawn and not saved
let kept = Promise.resolve(); // once the last draft is kept
let sure = 0; // when Esc was pressed with unsaved strokes
const made = []; // questions decided here, the last one last
const clock = { seconds: 0, since: null };
const loaded = new Map();

const now = () => queue.questions[at];
let fading = 0;
const say = (text, bad = false) => {
  clearTimeout(fading);
  $("note").hidden = !text;
  $("note").textContent = text;
  $("note").className = bad ? "bad" : "";
};
const whisper = (text) => {
  say(text);
  fading = setTimeout(() => say(""), 2500);
};

// ---- what the keys do: the help shows this list ----

const KEYS = [
  ["Decide", "judge", [
    ["1", "right", () => decide("right")],
    ["2", "wrong", () => decide("wrong")],
    ["3", "absent: the patient has none", () => decide("absent")],
    ["4", "unsure", () => decide("unsure")],
    ["e", "edit", () => startEdit()],
    ["z", "take back the last decision", () => takeBack()],
    ["c", "comment", () => $("comment").focus()],
    ["n", "next", () => open((at + 1) % queue.questions.length)],
    ["p", "previous", () => open((at + queue.questions.length - 1) % queue.questions.length)],
  ]],
  ["Edit", "edit", [
    ["b", "brush", () => take("b")],
    ["x", "eraser", () => take("x")],
    ["f", "outline, filled", () => take("f")],
    ["r", "erase inside an outline", () => take("r")],
    ["[", "smaller brush", () => resize(-1)],
    ["]", "larger brush", () => resize(1)],
    ["i", "fill between slices", () => viewer.interpolate() || whisper("No slice between those with the class is empty, in the large plane.")],
    ["t", "take the class from the next model", () => takeFromModel()],
    ["z", "undo", () => viewer.undo()],
    ["s", "save", () => save()],
    ["Escape", "leave without saving", () => leave()],
  ]],
  ["Look", "both", [
    ["ArrowUp", "slice up, in the large plane", () => viewer.step(1)],
    ["ArrowDown", "slice down, in the large plane", () => viewer.step(-1)],
    ["w", "window", () => setPreset(preset + 1)],
    ["v", "plane that is large", () => setPlane((viewer.plane + 1) % 3)],
    ["m", "map: label, models", () => nextMap()],
    [" ", "hide the label, and show it", () => look("visible")],
    ["o", "other classes", () => look("others")],
    ["a", "all of the image, or the organ", () => setWhole(!whole)],
    ["+", "zoom in", () => viewer.zoom(1.25)],
    ["-", "zoom out", () => viewer.zoom(0.8)],
    ["g", "go to the middle of the label", () => viewer.goTo(shown.about.start)],
    ["?", "these keys", () => help()],
  ]],
];
const HELD = ["ArrowUp", "ArrowDown", "+", "-", "[", "]"]; // what a key that is held down does again
const FATES = { // what became of a label
  accepted: "accepted: students learn from it",
  demoted: "refused: students do not learn from it",
  dropped: "refused, with its whole case",
  unknown: "students learn nothing of it",
  truth: "drawn by an annotator",
  reviewer: "drawn or judged by a reviewer",
};
const NAMES = { ArrowUp: "↑", ArrowDown: "↓", " ": "Space", Escape: "Esc" };

function press(key) {
  const mode = editing ? "edit" : "judge";
  for (const [, where, keys] of KEYS) {
    const found = where === mode || where === "both" ? keys.find(([name]) => name === key) : null;
    if (found) {
      if (where !== "judge" && key !== "?" && !(viewer && shown)) return true;
      found[2]();
      return true;
    }
  }
  return false;
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.key === "z" && editing) event.preventDefault();
  else if ((event.ctrlKey || event.metaKey || event.altKey) && !"[]".includes(event.key)) return; // AltGr types [
  if ($("help").open) {
    if (event.key === "?") $("help").close();
    return event.stopPropagation();
  }
  if (event.target === $("comment")) {
    if (event.key === "Enter" || event.key === "Escape") $("comment").blur();
    return event.stopPropagation();
  }
  const key = event.key === "=" ? "+" : event.key;
  if (event.repeat && !HELD.includes(key)) {
    event.preventDefault();
    return event.stopImmediatePropagation(); // it would judge the next label, which nobody saw
  }
  if (!busy && queue && press(key.length === 1 ? key.toLowerCase() : key)) {
    event.preventDefault();
    event.stopImmediatePropagation();
  }
}, true);
addEventListener("beforeunload", (event) => editing && viewer.strokes.length && event.preventDefault());

// ---- the server ----

async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    const told = editing ? " What was drawn until then is kept." : "";
    throw new Error(`The review has ended: type its command again, and open the new address.${told}`);
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
  throw new Error(error);
}

const post = async (address, body, type) =>
  (await ask(address, { method: "POST", body, headers: { "Content-Type": type } })).json();
const bytes = async (address) => (await ask(address)).arrayBuffer();

/** Load a question; what is loaded is kept for the one shown and the next one. */
function load(question, all) {
  const key = `${question.number}/${all ? "whole" : "crop"}`;
  if (!loaded.has(key)) {
    const loading = ask(`${key}/about`).then((answer) => answer.json()).then(async (about) => {
      const address = `${question.number}/${about.place}`; // the organ may grow meanwhile, by what others draw
      const [image, label] = await Promise.all([bytes(`${address}/image`), bytes(`${address}/map/${SET}`)]);
      return { address, about, image, maps: { [SET]: label } };
    });
    loading.catch(() => loaded.delete(key));
    loaded.set(key, loading);
    while (loaded.size > 3) loaded.delete(loaded.keys().next().value);
  }
  return loaded.get(key);
}

/** Return a map of what is shown; undefined when it cannot be had, or when something else is shown by then. */
async function mapOf(name) {
  const from = shown;
  try {
    from.maps[name] ??= await bytes(`${from.address}/map/${encodeURIComponent(name)}`);
  } catch (error) {
    say(error.message, true);
  }
  return from === shown ? from.maps[name] : undefined;
}

// ---- showing ----

async function open(index) {
  at = index;
  editing = false;
  preset = 0;
  whole = false;
  $("comment").value = "";
  describe();
  await draw();
}

async function draw() {
  const question = now();
  const all = whole;
  document.body.dataset.ready = "";
  shown = null;
  failed = false;
  map = SET;
  clock.since = null;
  clock.seconds = 0;
  tools();
  $("maps").replaceChildren();
  $("empty").hidden = true;
  $("slice").textContent = "";
  $("picture").hidden = true;
  if (!viewer) return instead(question);
  say("Loading …");
  try {
    const data = await load(question, all);
    if (question !== now() || all !== whole) return;
    const classes = queue.classes;
    data.about.modality = question.modality;
    await viewer.show(data.image, data.maps[SET], data.about, classes, classes.find((one) => one.name === question.class));
    shown = data;
    say("");
    setPlane(viewer.plane);
    setPreset(preset);
    numbers();
    start();
    ahead();
    if (hasDraft()) say("An edit of yours was not saved. Press E to go on with it.");
  } catch (error) {
    if (question !== now()) return;
    say(error.message, true);
    instead(question);
  }
}

/** Show the picture of a question, if there is one, where volumes cannot be shown. */
function instead(question) {
  failed = true;
  $("picture").hidden = !question.picture;
  if (question.picture) $("picture").src = `${question.number}/picture`;
  start();
}

function start() {
  clock.since = document.hidden ? null : performance.now();
  document.body.dataset.ready = now().number;
}

document.addEventListener("visibilitychange", () => {
  if (clock.since !== null) clock.seconds += (performance.now() - clock.since) / 1000;
  clock.since = document.hidden || !(shown || failed) ? null : performance.now();
});
const seconds = () => clock.seconds + (clock.since === null ? 0 : (performance.now() - clock.since) / 1000);

/** Load the next open question while this one is looked at. */
function ahead() {
  const next = nextOpen();
  if (next >= 0 && next !== at) load(queue.questions[next], false).catch(() => {});
}

function nextOpen() {
  const turn = queue.questions.map((_, i) => (at + 1 + i) % queue.questions.length);
  return turn.find((i) => queue.questions[i].open) ?? -1;
}

function describe() {
  const one = now();
  const mine = queue.classes.find((c) => c.name === one.class);
  $("place").textContent = `Question ${at + 1} of ${queue.questions.length}`;
  $("class").textContent = mine.plain;
  $("swatch").style.background = `rgb(${onBlack(mine.color)})`;
  $("case").textContent = [one.case, one.modality, FATES[one.selected] ?? one.selected].filter(Boolean).join("  ·  ");
  $("said").hidden = !one.said;
  $("said").className = one.decision;
  $("said").textContent = one.said;
  const lines = one.reasons.map(({ what, why }) => filled("li", element("b", what), why));
  if (one.asked === "random") lines.push(element("li", "Drawn at random from the accepted labels.", "random"));
  if (!one.predicted) lines.push(element("li", "Nothing was predicted: there is no label map."));
  $("reasons").replaceChildren(...lines);
  progress();
}

function progress() {
  $("progress").replaceChildren(...queue.questions.map((one, i) => {
    const box = element("i", "", `${one.decision} ${i === at ? "here" : ""}`);
    box.title = `${i + 1}. ${one.case}, ${one.class}${one.said ? `: ${one.said}` : ""}`;
    box.onclick = () => editing || open(i);
    return box;
  }));
  const total = queue.questions.length;
  const rest = queue.seconds_left === null || !queue.left ? "" : `, about ${duration(queue.seconds_left)} left`;
  $("left").textContent = `${total - queue.left} of ${total} answered${rest}`;
  $("who").textContent = `${queue.labels}  ·  ${queue.reviewer}`;
}

const duration = (s) => (s < 60 ? `${Math.max(5, Math.round(s / 5) * 5)} s` : `${Math.ceil(s / 60)} min`);

function numbers() {
  const head = filled("tr", ...["", "ml", "Dice"].map((name) => element("th", name)));
  const rows = shown.about.maps.map(({ name, ml, dice }) => {
    const row = element("tr", "", `choice ${name === map ? "on" : ""}`);
    const title = name === SET ? "this label" : name;
    const same = name === SET || dice === null ? "–" : dice.toFixed(2);
    for (const text of [title, ml < 10 ? ml.toFixed(1) : ml.toFixed(0), same]) row.append(element("td", text));
    row.onclick = () => editing || setMap(name);
    return row;
  });
  $("maps").replaceChildren(head, ...rows);
  $("empty").hidden = shown.about.maps[0].ml > 0;
  looks();
}

/** The buttons above the image. */
function looks() {
  const button = (key, text, on, action) => {
    const made = element("button", "", on ? "on" : "");
    if (key) made.append(element("kbd", key), " ");
    made.append(text);
    made.onclick = () => { if (shown) action(); made.blur(); };
    return made;
  };
  const windows = shown.about.windows.map(([name], i) =>
    button(i ? "" : "W", name, i === preset, () => setPreset(i)));
  const planes = ["Axial", "Coronal", "Sagittal"].map((name, i) =>
    button(i ? "" : "V", name, i === viewer.plane, () => setPlane(i)));
  $("looks").replaceChildren(
    ...windows, element("i"), ...planes, element("i"),
    button("Space", "Label", viewer.visible, () => look("visible")),
    button("O", "Others", viewer.others, () => look("others")),
    button("A", "All", whole, () => setWhole(!whole)),
  );
}

function setPreset(index) {
  const { windows } = shown.about;
  preset = index % windows.length;
  viewer.setWindow(windows[preset][1], windows[preset][2]);
  looks();
}

function setPlane(plane) {
  viewer.setPlane(plane);
  viewer.nv.createOnLocationChange();
  looks();
}

function look(what) {
  viewer[what] = !viewer[what];
  viewer.paint();
  looks();
}

function setWhole(all) {
  if (editing) return whisper("Save first, or leave the edit.");
  whole = all;
  draw();
}

async function setMap(name) {
  const content = await mapOf(name);
  if (!content) return;
  map = name;
  viewer.putMap(content);
  numbers();
}

function nextMap() {
  if (editing) return;
  const names = shown.about.maps.map(({ name }) => name);
  setMap(names[(names.indexOf(map) + 1) % names.length]);
}

// ---- deciding ----

async function decide(decision) {
  if (!shown && !failed) return whisper("Still loading.");
  if (map !== SET && ["right", "wrong"].includes(decision)) {
    return whisper(`This is the map ${map}. Press M until "this label" is shown, which is asked about; or E, to start from this map.`);
  }
  const body = JSON.stringify({ decision, seconds: seconds(), comment: $("comment").value });
  await answer(() => post(`${now().number}/decision`, body, "application/json"));
}

/** Do something that no key may come between; say what goes wrong. */
async function alone(work) {
  busy = true;
  await work().catch((error) => say(error.message, true));
  busy = false;
}

const answer = (send) => alone(async () => {
  const mine = at;
  queue = await send();
  made.push(mine);
  if (editing) dropDraft();
  editing = false;
  const next = nextOpen();
  busy = false;
  await open(next < 0 ? mine : next);
  if (next < 0) say("All questions are answered. Type the command of the run again.");
});

const takeBack = () => alone(async () => {
  const last = made.at(-1);
  if (last === undefined) return whisper("Nothing to take back.");
  queue = await post(`${queue.questions[last].number}/back`, "", "application/json");
  made.pop();
  busy = false;
  await open(last);
});

// ---- editing ----

const hasDraft = () => shown.about.maps.some(({ name }) => name === queue.draft);

/** Keep what is drawn on the server: whatever ends, server or browser, loses what was drawn within a second. */
function keepDraft() {
  clearTimeout(drafting);
  if (editing) drafting = setTimeout(() => { kept = kept.then(sendDraft); }, 300);
}

async function sendDraft() {
  if (!editing) return;
  const { address } = shown;
  const content = viewer.strokes.length ? await viewer.file() : "";
  await ask(`${address}/draft`, { method: "POST", body: content }).catch((error) => say(error.message, true));
}

/** Forget the draft of what is shown: it is saved by now, or should not be. */
function dropDraft() {
  clearTimeout(drafting);
  for (const one of queue.questions.filter((one) => one.case === now().case)) { // they show what was drawn
    for (const kind of ["crop", "whole"]) loaded.delete(`${one.number}/${kind}`);
  }
  shown.about.maps = shown.about.maps.filter(({ name }) => name !== queue.draft);
}

async function startEdit() {
  if (!viewer) return say("This browser has no WebGL2, so nothing can be edited here. Type labelloop review RESULTS --export DIR.", true);
  if (!shown) return whisper("Still loading.");
  const from = map === SET && hasDraft() ? queue.draft : map;
  say("");
  if (map !== SET) await setMap(SET);
  editing = true;
  viewer.visible = true;
  viewer.paint();
  take("b");
  looks();
  if (from !== SET) viewer.takeFrom(await mapOf(from));
}

function take(key) {
  viewer.edit(TOOLS[key]);
  resize(0);
}

function resize(by) {
  brush = Math.min(80, Math.max(1, brush + by * Math.max(1, Math.round(brush / 8))));
  viewer.brush = brush;
  tools();
}

async function takeFromModel() {
  const models = shown.about.maps.map(({ name }) => name).filter((name) => name !== SET);
  if (!models.length) return whisper("There is no model's map.");
  takeFromModel.turn = ((takeFromModel.turn ?? -1) + 1) % models.length;
  const name = models[takeFromModel.turn];
  const content = await mapOf(name);
  if (!content || !editing) return;
  viewer.takeFrom(content);
  whisper(`As ${name} has it.`);
}

function leave() {
  if (viewer.strokes.length && performance.now() - sure > 3000) {
    sure = performance.now();
    return whisper("Not saved. Press Esc again to leave all the same.");
  }
  const { address } = shown;
  kept = kept.then(() => ask(`${address}/draft`, { method: "POST", body: "" })).catch(() => {});
  dropDraft();
  editing = false;
  viewer.edit(null);
  setMap(SET);
  tools();
}

async function save() {
  viewer.settle();
  if (!viewer.strokes.length) return whisper("Nothing was changed.");
  say("Saving …");
  const query = new URLSearchParams({ seconds: seconds().toFixed(1), comment: $("comment").value });
  const { address } = shown;
  clearTimeout(drafting);
  await answer(async () => {
    await kept;
    return post(`${address}/edited?${query}`, await viewer.file(), "application/gzip");
  });
}

function drawn() {
  tools();
  keepDraft();
}

/** Show the decisions or the tools, whichever there is a use for. */
function tools() {
  $("judge").hidden = editing;
  $("tools").hidden = !editing;
  if (!editing) return viewer?.edit(null);
  for (const button of $("tools").querySelectorAll("[data-key]")) {
    button.classList.toggle("on", TOOLS[button.dataset.key] === viewer.tool);
  }
  $("strokes").textContent = viewer.strokes.length ? `${viewer.strokes.length} so far` : "nothing yet";
  $("size").querySelector("b").textContent = `${brush} mm`;
}

function filled(name, ...parts) {
  const made = document.createElement(name);
  made.append(...parts);
  return made;
}

function element(name, text = "", classes = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes.trim();
  return made;
}

function help() {
  const groups = KEYS.map(([title, , keys]) => {
    const terms = keys.flatMap(([key, words]) =>
      [filled("dt", element("kbd", NAMES[key] ?? key.toUpperCase())), element("dd", words)]);
    return filled("section", element("h3", title), filled("dl", ...terms));
  });
  const box = element("div", "", "groups");
  box.append(...groups);
  const mouse = element("p", "Mouse: left, crosshair or brush; wheel, slices; right, window; middle, move the image.");
  const end = element("p", "Esc closes this.");
  $("help").replaceChildren(element("h2", "Keys"), box, mouse, end);
  $("help").showModal();
}

async function begin() {
  $("ask").onclick = help;
  for (const button of document.querySelectorAll("[data-key]")) {
    button.onclick = () => { button.blur(); if (!busy && queue) press(button.dataset.key); };
  }
  try {
    queue = await (await ask("queue")).json();
  } catch (error) {
    return say(error.message, true);
  }
  if (canShow()) {
    viewer = new Viewer($("canvas"), $("ring"), (text) => { $("slice").textContent = text; }, drawn);
    await viewer.open();
  } else {
    $("canvas").hidden = true;
    whisper("This browser has no WebGL2: pictures alone. To edit, type labelloop review RESULTS --export DIR.");
  }
  at = queue.questions.length - 1;
  const first = nextOpen();
  await open(first < 0 ? 0 : first);
}

begin();
