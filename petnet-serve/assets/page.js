"use strict";
const at = id => document.getElementById(id);
const on = (id, kind, work) => at(id).addEventListener(kind, work);
function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}
const percent = share => (Math.floor(share * 1000) / 10).toFixed(1) + " %";
const named = label => (/^[aeiou]/i.test(label) ? "an " : "a ") + label;
const capital = text => text[0].toUpperCase() + text.slice(1);
const pause = ms => new Promise(done => setTimeout(done, ms));
const say = text => { at("said").textContent = text; };

// If the service needs an API key, the user enters it once; it is stored in this tab only.
let asking = null;
function askForKey(refused) {
  asking ||= new Promise(resolve => {
    at("asknote").textContent = refused ? "The service does not accept this key." : "This service needs an API key.";
    at("key").value = "";
    at("ask").returnValue = "";
    at("ask").showModal();
    at("ask").onclose = () => {
      asking = null;
      const key = at("ask").returnValue === "key" && at("key").value.trim();
      if (key) sessionStorage.setItem("key", key);
      resolve(Boolean(key));
    };
  });
  return asking;
}
on("keyform", "submit", event => { event.preventDefault(); at("ask").close("key"); });
on("nokey", "click", () => at("ask").close());

async function request(path, options) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
    const reply = await fetch(path, { ...options, headers }).catch(error => {
      throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
    });
    if (reply.status !== 401) return reply;
    // Another request may have set a new key in the meantime.
    if (sessionStorage.getItem("key") === key && !await askForKey(key)) return reply;
  }
}

async function problem(reply) {
  const body = await reply.json().catch(() => ({}));
  return new Error(body.detail ? capital(body.detail) + "." : `The server answered with status ${reply.status}.`);
}

// An overloaded service returns Retry-After: the request is repeated after that time, and the wait is shown.
const TRIES = 8;
async function send(path, file, signal, busy) {
  await file.slice(0, 1).arrayBuffer().catch(() => { throw new Error("This file cannot be read."); });
  const model = at("model").value;
  for (let tries = 1; ; tries++) {
    const body = new FormData();
    body.append("file", file, file.name || "photo");
    const began = performance.now();
    const reply = await request(path + (model ? "?model=" + encodeURIComponent(model) : ""),
      { method: "POST", body, headers: { Accept: "application/json" }, signal });
    if (reply.ok) return { ...await reply.json(), took: performance.now() - began };
    const retry = reply.headers.get("Retry-After");
    if (![429, 503].includes(reply.status) || !retry || tries === TRIES) throw await problem(reply);
    for (let left = Math.min(Math.max(Number(retry) || 1, 1), 60); left > 0 && !signal.aborted; left--) {
      busy(`The server is busy. Next try in ${left} s.`);
      await pause(1000);
    }
    busy("");
    signal.throwIfAborted();
  }
}

// The queue: at most LANES photos are sent concurrently, in their order.
const LANES = 2;
let photos = [], running = 0, batch = 0;
function pump() {
  while (running < LANES) {
    const photo = photos.find(photo => photo.state === "waiting");
    if (!photo) break;
    running++;
    classify(photo).finally(() => { running--; pump(); });
  }
  summarise();
}

async function classify(photo) {
  const { signal } = photo.abort = new AbortController();
  change(photo, { state: "sending" });
  try {
    const answer = await send("predict", photo.file, signal, note => change(photo, { note }));
    if (signal.aborted) return;
    title(Object.keys(answer.probabilities), answer.labels);
    change(photo, { state: answer.decision === "unsure" ? "unsure" : "done", answer });
    say(`${photo.name}: ${headline(answer)}. ${reason(answer) || (answer.labels ? "" : percent(answer.confidence))}`);
  } catch (error) {
    if (signal.aborted) return;
    change(photo, { state: "failed", error: error.message });
    say(`${photo.name}: ${error.message}`);
  }
}

function requeue(photo) {
  photo.abort?.abort();
  Object.assign(photo, { answer: null, error: "", heat: null, judged: "", explaining: null, heatError: "" });
  change(photo, { state: "waiting", note: "" });
}

function add(files) {
  if (!files.length) return;
  if (!photos.some(pending)) batch = 0;
  for (const file of files) {
    const photo = { file, name: file.name || "Pasted photo", url: URL.createObjectURL(file), state: "waiting" };
    build(photo);
    photos.push(photo);
    change(photo, {});
  }
  at("cards").append(...photos.slice(-files.length).map(photo => photo.item));
  batch += files.length;
  say(files.length === 1 ? "1 photo added." : `${files.length} photos added.`);
  pump();
}

function remove(gone) {
  const place = photos.indexOf(gone[0]);
  batch -= gone.filter(pending).length;
  for (const photo of gone) {
    photo.abort?.abort();
    URL.revokeObjectURL(photo.url);
    photo.item.remove();
  }
  photos = photos.filter(photo => !gone.includes(photo));
  say(gone.length === 1 ? "Photo removed." : "All photos removed.");
  pump();
  const next = photos[Math.min(place, photos.length - 1)];
  (next ? next.card : at("file")).focus();
}

const pending = photo => photo.state === "waiting" || photo.state === "sending";
function summarise() {
  const left = photos.filter(pending).length, counts = new Map();
  for (const photo of photos) {
    const name = photo.state === "failed" ? "failed" : photo.answer && headline(photo.answer).toLowerCase();
    if (name && !pending(photo)) counts.set(name, (counts.get(name) || 0) + 1);
  }
  const all = [...counts].sort((a, b) => b[1] - a[1]);
  const found = all.slice(0, 5).map(([name, count]) => `${count} ${name}`).join(" \u00b7 ") + (all.length > 5 ? " \u2026" : "");
  at("summary").textContent = left ? `${batch - left} of ${batch} done` :
    `${photos.length} ${photos.length === 1 ? "photo" : "photos"}: ${found}`;
  at("progress").max = batch; at("progress").value = batch - left; at("progress").hidden = !left;
  at("gallery").hidden = !photos.length;
  document.body.classList.toggle("has", photos.length > 0);
  photos.forEach(photo => { photo.card.tabIndex = -1; });
  if (photos.length) (photos.includes(last) ? last : photos[0]).card.tabIndex = 0;
  if (shown) places();
}

// Texts for an answer. The answer of a multi-label model has any number of labels.
function headline(answer) {
  if (answer.decision === "unsure") return "Unsure";
  return answer.labels ? answer.labels.map(one => one.label).join(", ") || "None of the labels" : answer.predicted_class;
}
function reason(answer) {
  if (answer.decision !== "unsure") return "";
  return answer.reason === "low_confidence" && !answer.labels ?
    `Perhaps ${named(answer.predicted_class)}, but the confidence is too low for a decision.` : answer.message || "";
}
function title(labels, several) {
  const [first, ...others] = labels;
  at("title").textContent = several || !others.length || others.length > 2 ? "What is in the photo?" :
    [capital(first), ...others].join(" or ") + "?";
}

let last = null;
function build(photo) {
  photo.item = make("li"); photo.card = make("button", "card"); photo.card.type = "button"; photo.card.tabIndex = -1;
  photo.thumb = make("span", "thumb"); photo.text = make("span", "text");
  photo.image = make("img"); photo.image.alt = ""; photo.image.decoding = "async"; photo.image.src = photo.url;
  photo.image.onerror = () => { photo.image = make("span", "", "No preview"); change(photo, {}); };
  photo.item.append(photo.card); photo.card.append(photo.thumb, photo.text);
  photo.card.addEventListener("click", () => open(photo));
  photo.card.addEventListener("focus", () => {
    if (last) last.card.tabIndex = -1;
    last = photo; photo.card.tabIndex = 0;
  });
}

function meter(label, share) {
  const track = make("span", "track"), fill = make("span", "fill");
  fill.style.width = share * 100 + "%";
  if (label) Object.assign(track, { role: "meter", ariaLabel: label, ariaValueMin: 0, ariaValueMax: 1, ariaValueNow: share });
  track.append(fill);
  return track;
}

function change(photo, values) {
  Object.assign(photo, values);
  const { answer, state } = photo, line = make("span", "line"), text = [line];
  photo.card.className = "card " + state;
  photo.thumb.replaceChildren(photo.image, ...(state === "sending" ? [make("span", "spin")] : []),
    ...(photo.judged ? [make("span", "mark", "\u2713 noted")] : []));
  if (state === "waiting") line.append(make("span", "soft", "Waiting"));
  else if (state === "sending") line.append(make("span", "soft", photo.note || "Classifying\u2026"));
  else if (state === "failed") { line.append(make("b", "", "Failed")); text.push(make("span", "why", photo.error)); }
  else {
    line.append(make("b", state === "done" ? "capital" : "", headline(answer)));
    if (state === "unsure") text.push(make("span", "why", reason(answer)));
    else if (!answer.labels) { line.append(make("span", "", percent(answer.confidence))); text.push(meter("", answer.confidence)); }
  }
  text.push(make("span", "name", photo.name));
  photo.text.replaceChildren(...text);
  if (photo === shown) show();
}

on("cards", "keydown", event => {
  const place = photos.findIndex(photo => photo.card === event.target);
  if (place < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Delete") { event.preventDefault(); remove([photos[place]]); return; }
  const columns = getComputedStyle(at("cards")).gridTemplateColumns.split(" ").length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -place, End: photos.length - 1 - place }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  photos[place + step]?.card.focus();
});

// The large view of one photo.
let shown = null, opacity = 50, judgedFor = null;
function open(photo) {
  shown = photo; judgedFor = null;
  // Otherwise the previous photo is shown until the new one is decoded.
  at("photo").removeAttribute("src");
  at("photo").src = photo.url; at("frame").hidden = false;
  show();
  if (!at("view").open) at("view").showModal();
  at("view").querySelector(".body").scrollTop = 0;
}

function places() {
  const place = photos.indexOf(shown);
  at("place").textContent = photos.length > 1 ? `${place + 1} of ${photos.length}` : "";
  at("back").disabled = place === 0; at("next").disabled = place === photos.length - 1;
  at("back").hidden = at("next").hidden = photos.length < 2;
}

function show() {
  const { answer, state } = shown;
  places();
  at("view").className = state;
  at("name").textContent = shown.name;
  at("answer").className = state === "done" ? "capital" : "";
  at("answer").textContent = answer ? headline(answer) : { waiting: "Waiting", sending: "Classifying\u2026", failed: "Failed" }[state];
  at("photo").alt = answer ? `${shown.name}, classified as ${headline(answer)}` : shown.name;
  const why = answer ? reason(answer) : state === "failed" ? shown.error : shown.note || "";
  at("reason").textContent = why; at("reason").hidden = !why;
  at("again").hidden = state !== "failed";
  at("detail").textContent = "";
  if (answer) {
    const took = `${answer.processing_time_ms.toFixed(1)} ms on the server, ${answer.took.toFixed(0)} ms round trip.`;
    at("detail").textContent = state === "unsure" && answer.reason !== "low_confidence" ?
      took + " The probabilities below are valid only for photos like those that the model was trained on." :
      (answer.labels ? "" : percent(answer.confidence) + " confidence. ") + took;
  }
  bars(answer);
  judge(shown);
  heat(shown);
}

const BARS = 5;
function bars(answer) {
  const all = Object.entries(answer ? answer.probabilities : {}).sort((a, b) => b[1] - a[1]);
  const rows = all.slice(0, BARS).map(([label, share]) => {
    const row = make("div", "row");
    row.append(make("span", "", label), meter(label, share), make("span", "", percent(share)));
    return row;
  });
  if (all.length > BARS) rows.push(make("p", "soft", `and ${all.length - BARS} more labels`));
  at("bars").replaceChildren(...rows);
}

// The heat map needs a request of its own, which is sent when the photo is opened for the first time.
async function heat(photo) {
  const { answer, explained } = photo;
  at("heat").hidden = !photo.heat; at("slide").hidden = !photo.heat;
  if (!answer) { at("heatnote").textContent = ""; return; }
  if (photo.heat) { paint(photo.heat); return; }
  at("heatnote").textContent = photo.heatError || "Computing the heat map\u2026";
  if (photo.explaining === answer) return;
  photo.explaining = answer; photo.heatError = "";
  const { signal } = photo.abort;
  try {
    const note = text => { if (shown === photo && text) at("heatnote").textContent = text; };
    const { heatmap } = await send("explain", photo.file, signal, note);
    if (signal.aborted) return;
    photo.heat = heatmap;
  } catch (error) {
    if (signal.aborted) return;
    photo.heatError = "There is no heat map: " + error.message;
  }
  if (shown === photo) heat(photo);
}

// The colour map of the overlay that the service draws; values are interpolated bilinearly.
const STOPS = [[30, 40, 160], [20, 150, 210], [120, 210, 120], [250, 210, 50], [220, 40, 30]];
function paint({ width, height, values }) {
  const canvas = at("heat"), { naturalWidth: w, naturalHeight: h } = shown.image;
  if (!w) return;
  const scale = 200 / Math.max(w, h);
  canvas.width = Math.max(1, Math.round(w * scale)); canvas.height = Math.max(1, Math.round(h * scale));
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const cell = (at, size, cells) => Math.min(Math.max((at + .5) / size * cells - .5, 0), cells - 1);
  for (let y = 0, to = 0; y < canvas.height; y++) for (let x = 0; x < canvas.width; x++) {
    const fx = cell(x, canvas.width, width), fy = cell(y, canvas.height, height), x0 = fx | 0, y0 = fy | 0;
    const x1 = Math.min(x0 + 1, width - 1), y1 = Math.min(y0 + 1, height - 1);
    const mix = (a, b, share) => a + (b - a) * share;
    const value = mix(mix(values[y0 * width + x0], values[y0 * width + x1], fx - x0),
      mix(values[y1 * width + x0], values[y1 * width + x1], fx - x0), fy - y0);
    const step = Math.min(Math.max(value, 0), 1) * 4, low = Math.min(step | 0, 3);
    for (let part = 0; part < 3; part++) image.data[to++] = mix(STOPS[low][part], STOPS[low + 1][part], step - low);
    image.data[to++] = 255;
  }
  context.putImageData(image, 0, 0);
  canvas.style.opacity = opacity / 100;
  at("heatnote").textContent = "Red marks the parts of the photo that count most for the answer.";
}
at("photo").onerror = () => { at("frame").hidden = true; };
on("opacity", "input", event => {
  opacity = Number(event.target.value);
  at("heat").style.opacity = opacity / 100;
  at("share").textContent = opacity + " %";
});

// User feedback on the answer; the photo itself is not sent again.
const BUTTONS = 6;
function judge(photo) {
  const { answer } = photo;
  at("judge").hidden = !answer || !takesFeedback;
  if (at("judge").hidden || judgedFor === answer) return;
  judgedFor = answer;
  at("labels").replaceChildren(); at("checks").replaceChildren();
  if (photo.judged) { at("judged").textContent = photo.judged; return; }
  const all = Object.keys(answer.probabilities), unsure = answer.decision === "unsure";
  at("judged").textContent = unsure ? "Do you know the answer?" : "Was this right?";
  const button = (text, label) => {
    const button = make("button", "button", text);
    button.type = "button";
    button.addEventListener("click", () => tell(photo, typeof label === "function" ? label() : label));
    at("labels").append(button);
    return button;
  };
  if (answer.labels) {
    const given = new Set(answer.labels.map(one => one.label));
    const confirm = button("Yes, all right", () => all.filter(label => given.has(label)).join("|"));
    for (const name of all) {
      const label = make("label"), box = make("input");
      box.type = "checkbox"; box.checked = given.has(name);
      box.addEventListener("change", () => { given[box.checked ? "add" : "delete"](name); confirm.textContent = "Send these labels"; });
      label.append(box, name); at("checks").append(label);
    }
    return;
  }
  const right = answer.predicted_class, others = all.filter(label => label !== right);
  button(unsure ? "It is " + named(right) : "Yes, " + named(right), right);
  if (all.length <= BUTTONS) {
    for (const label of others) button((unsure ? "It is " : "No, it is ") + named(label), label);
    return;
  }
  const select = make("select");
  select.ariaLabel = "The right label";
  select.append(new Option("It is something else\u2026", ""), ...others.sort().map(label => new Option(label, label)));
  select.addEventListener("change", () => { if (select.value) tell(photo, select.value); });
  at("labels").append(select);
}

async function tell(photo, label) {
  const { answer } = photo, controls = at("judge").querySelectorAll("button, select, input");
  controls.forEach(control => { control.disabled = true; });
  try {
    const reply = await request("feedback", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ prediction_id: answer.prediction_id, label }),
    });
    if (!reply.ok) throw await problem(reply);
    if (photo.answer !== answer) return;
    judgedFor = null;
    change(photo, { judged: `Noted: ${answer.labels ? label.replaceAll("|", ", ") || "no label" : named(label)}. Thank you.` });
    if (shown === photo) at("close").focus();
  } catch (error) {
    if (judgedFor === answer) at("judged").textContent = "The feedback was not saved: " + error.message;
    controls.forEach(control => { control.disabled = false; });
  }
}

function step(by) {
  const next = photos[photos.indexOf(shown) + by];
  if (next) { open(next); last = next; say(`${next.name}: ${at("answer").textContent}`); }
}
on("back", "click", () => step(-1));
on("next", "click", () => step(1));
on("close", "click", () => at("view").close());
on("again", "click", () => { batch = photos.filter(pending).length + 1; requeue(shown); pump(); });
on("remove", "click", () => { const photo = shown; at("view").close(); shown = null; remove([photo]); });
on("clear", "click", () => remove(photos));
on("view", "close", () => {
  const photo = shown;
  shown = null;
  at("photo").removeAttribute("src");
  photo?.card.focus();
});
on("view", "keydown", event => {
  if (/^(INPUT|SELECT)$/.test(event.target.tagName) || event.altKey || event.ctrlKey || event.metaKey) return;
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by) { event.preventDefault(); step(by); }
});
for (const id of ["view", "live"]) on(id, "click", event => { if (event.target === at(id)) at(id).close(); });

// The camera; where the browser does not permit it on this page, a file input opens the phone's camera app.
let stream = null, taken = 0;
function stop() { stream?.getTracks().forEach(track => track.stop()); stream = null; at("video").srcObject = null; }
async function start() {
  stop();
  at("shutter").disabled = at("instead").hidden = true;
  at("livenote").textContent = "Starting the camera\u2026";
  try {
    const video = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
    const started = await navigator.mediaDevices.getUserMedia({ video });
    if (!at("live").open) { started.getTracks().forEach(track => track.stop()); return; }
    stream = at("video").srcObject = started;
    await at("video").play().catch(() => {});
    at("shutter").disabled = false; at("shutter").focus();
    at("livenote").textContent = "";
  } catch (error) {
    at("livenote").textContent = error.name === "NotAllowedError" ? "The browser does not let this page use the camera." :
      error.name === "NotFoundError" ? "No camera was found." : "The camera cannot be used: " + error.message;
    at("instead").hidden = false;
  }
}
on("camera", "click", () => {
  if (!navigator.mediaDevices?.getUserMedia) { at("capture").click(); return; }
  taken = 0;
  at("live").showModal();
  start();
});
on("shutter", "click", () => {
  const video = at("video"), canvas = make("canvas");
  if (!video.videoWidth) return;
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(blob => {
    if (!blob) return;
    taken++;
    at("livenote").textContent = taken === 1 ? "1 photo taken." : `${taken} photos taken.`;
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
    add([new File([blob], `camera ${time}.jpg`, { type: "image/jpeg" })]);
  }, "image/jpeg", .92);
});
on("instead", "click", () => { at("capture").click(); at("live").close(); });
on("done", "click", () => at("live").close());
on("live", "close", () => { stop(); at("camera").focus(); });
document.addEventListener("visibilitychange", () => { if (document.hidden && at("live").open) at("live").close(); });
addEventListener("pagehide", event => {
  stop();
  if (!event.persisted) photos.forEach(photo => URL.revokeObjectURL(photo.url));
});

for (const id of ["file", "capture"]) {
  on(id, "change", event => { add([...event.target.files]); event.target.value = ""; });
}
document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault(); document.body.classList.remove("over");
  add([...event.dataTransfer.files]);
});
document.addEventListener("paste", event => add([...event.clipboardData.files]));

let takesFeedback = false;
fetch("version").then(reply => reply.json()).then(({ feedback, model }) => {
  takesFeedback = feedback;
  if (model && !photos.some(photo => photo.answer)) title(model.classes, model.task === "multi_label");
  if (shown) show();
}).catch(() => {});
fetch(".", { headers: { Accept: "application/json" } }).then(reply => reply.json()).then(({ models }) => {
  if (!Array.isArray(models) || models.length < 2) return;
  at("model").append(...models.map(name => new Option(name, name)));
  at("model").hidden = false;
}).catch(() => {});
on("model", "change", () => {
  photos.forEach(requeue);
  batch = photos.length;
  pump();
});

const here = new URL(".", location).href.replace(/\/$/, "");
for (const code of document.querySelectorAll("pre")) code.textContent = code.textContent.replace("HERE", here);
