// Drives the page and /docs; run by scripts/page-test.sh.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer, request as forward } from "node:http";
import { createRequire } from "node:module";

const { chromium } = createRequire(process.env.MODULES)("playwright-core");
const [photo, shots] = process.argv.slice(2);
const address = process.env.BASE;
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
});
const broken = { name: "notes.jpg", mimeType: "image/jpeg", buffer: Buffer.from("no photo") };
const bytes = readFileSync(photo);
const named = name => ({ name, mimeType: "image/jpeg", buffer: bytes });
const desktop = { viewport: { width: 1280, height: 800 } };

// The service's own answer, as if the model were not unsure of a drawing: a route could not pass the file on. Object URLs are
// counted, to see that each is given back.
function prepared() {
  const real = window.fetch;
  window.fetch = async (...request) => {
    const reply = await real(...request);
    if (!String(request[0]).startsWith("predict") || !reply.ok || reply.headers.has("x-as-it-is")) return reply;
    const answer = await reply.json();
    const body = { ...answer, decision: answer.predicted_class, reason: null, message: null };
    return new Response(JSON.stringify(body), { status: reply.status, headers: reply.headers });
  };
  const { createObjectURL, revokeObjectURL } = URL;
  window.urls = new Set();
  URL.createObjectURL = file => { const url = createObjectURL.call(URL, file); window.urls.add(url); return url; };
  URL.revokeObjectURL = url => { window.urls.delete(url); revokeObjectURL.call(URL, url); };
}

// Violations of the content security policy are errors of the console as well.
async function open(options, where = address) {
  const page = await browser.newPage(options);
  const complaints = [];
  await page.addInitScript(prepared);
  page.on("console", message => { if (message.type() === "error") complaints.push(message.text()); });
  page.on("pageerror", error => complaints.push(String(error)));
  await page.goto(where);
  return { page, complaints };
}

const settled = (page, count) => page.waitForFunction(count =>
  document.querySelectorAll(".card").length === count && !document.querySelector(".card.waiting, .card.sending"), count);
const focused = page => page.evaluate(() => document.activeElement.id || document.activeElement.className);
async function opened(page, card) {
  await page.click(`#cards li:nth-child(${card}) .card`);
  await page.waitForSelector("#view[open] #answer");
}
async function fulfilled(page, answer, work) {
  await page.route("**/predict", route => route.fulfill({ headers: { "x-as-it-is": "1" }, json: answer }));
  await page.setInputFiles("#file", photo);
  await settled(page, 1);
  await opened(page, 1);
  await page.waitForSelector("#labels button");
  await work();
  await page.unroute("**/predict");
  await page.reload();
}

// Several images, one of them broken, which fails alone.
const { page, complaints } = await open(desktop);
await page.waitForFunction(() => /^(Cat or dog|What is)/.test(document.getElementById("title").textContent));
const isAnswer = reply => reply.url().endsWith("/predict") && reply.ok();
const predicted = page.waitForResponse(isAnswer);
// The answers arrive in any order.
const ids = [];
page.on("response", async reply => isAnswer(reply) && ids.push((await reply.json()).prediction_id));
await page.setInputFiles("#file", [named("first.jpg"), broken, named("third.jpg")]);
await settled(page, 3);
const answer = await (await predicted).json();
const label = answer.predicted_class, other = label === "cat" ? "dog" : "cat";
assert.match(label, /^(cat|dog)$/, "the photo must be one that the model answers");
assert.deepEqual(await page.locator(".card").evaluateAll(cards => cards.map(card => card.className)),
  ["card done", "card failed", "card done"]);
assert.equal(await page.textContent(".card.done b"), label);
assert.match(await page.textContent(".card.done .line span"), /^\d+\.\d %$/);
assert.match(await page.textContent(".card.failed"), /not a JPEG.*notes\.jpg/i);
assert.equal(await page.textContent("#summary"), `3 photos: 2 ${label} · 1 failed`);
await page.waitForFunction(() => document.querySelector(".card img").naturalWidth);

// The large view: probabilities, the heat map and the slider for its opacity.
await opened(page, 1);
await page.waitForSelector("#heat:not([hidden])");
assert.equal(await page.textContent("#answer"), label);
assert.equal(await page.isHidden("#reason"), true);
assert.equal(await page.locator("#bars [role=meter]").count(), 2);
assert.match(await page.textContent("#detail"), /% confidence\. [\d.]+ ms on the server, \d+ ms round trip\./);
const heat = () => page.evaluate(() => {
  const canvas = document.getElementById("heat"), { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return { colours: new Set(new Uint32Array(data.buffer)).size, opacity: canvas.style.opacity };
});
assert.ok((await heat()).colours > 50, "the heat map is drawn");
for (const [key, share] of [["Home", 0], ["End", 100], ["ArrowLeft", 99]]) {
  await page.focus("#opacity");
  await page.keyboard.press(key);
  assert.equal((await heat()).opacity, String(share / 100));
  assert.equal(await page.textContent("#share"), `${share} %`);
}
assert.match(await page.textContent("#place"), /^1 of 3$/, "arrows on the slider do not leave the photo");

// User feedback.
assert.deepEqual(await page.locator("#labels button").allTextContents(), [`Yes, a ${label}`, `No, it is a ${other}`]);
await page.click("#labels button:nth-child(2)");
await page.waitForFunction(() => /^Noted/.test(document.getElementById("judged").textContent));
assert.equal(await page.locator(".card .mark").count(), 1);
const exported = (await (await fetch(address + "feedback/export")).text()).trim().split("\n").map(line => JSON.parse(line));
assert.deepEqual(exported.filter(given => ids.includes(given.prediction_id))
  .map(given => [given.predicted_class, given.label]), [[label, other]]);

// The keyboard: arrows between images, Escape, the focus in the dialog and after it, Delete.
await page.focus("#close");
await page.keyboard.press("ArrowRight");
assert.equal(await page.textContent("#answer"), "Failed");
assert.match(await page.textContent("#reason"), /^Not a JPEG/);
for (let step = 0; step < 12; step++) {
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement === document.body || Boolean(document.activeElement.closest("#view"))), true);
}
await page.keyboard.press("Escape");
await page.waitForFunction(() => !document.getElementById("view").open);
await page.waitForFunction(() => document.activeElement.className === "card failed");
await page.keyboard.press("ArrowLeft");
await page.keyboard.press("End");
await page.keyboard.press("Home");
await page.keyboard.press("Enter");
await page.waitForSelector("#view[open]");
assert.equal(await focused(page), "close");
assert.equal(await page.textContent("#name"), "first.jpg");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.activeElement.className === "card done");
await page.keyboard.press("Delete");
assert.equal(await page.locator(".card").count(), 2);
assert.equal(await focused(page), "card failed");
await page.click("#clear");
assert.equal(await page.isHidden("#gallery"), true);
assert.equal(await page.evaluate(() => window.urls.size), 0, "object URLs are revoked");
await page.reload();
const reached = [];
for (let step = 0; step < 4; step++) {
  await page.keyboard.press("Tab");
  reached.push(await focused(page));
}
assert.deepEqual(reached, ["quiet", "file", "camera", ""]);

// The queue: two images are being sent, the others wait, and the progress is shown.
let release;
const held = new Promise(resolve => { release = resolve; });
await page.route("**/predict", async route => { await held; await route.fulfill({ json: answer }); });
await page.setInputFiles("#file", [1, 2, 3, 4, 5].map(number => named(`${number}.jpg`)));
await page.waitForSelector(".card.sending");
assert.deepEqual([await page.locator(".card.sending").count(), await page.locator(".card.waiting").count()], [2, 3]);
assert.equal(await page.textContent("#summary"), "0 of 5 done");
assert.equal(await page.isVisible("#progress"), true);
await page.screenshot({ path: `${shots}/page-queue.png` });
release();
await settled(page, 5);
assert.equal(await page.isHidden("#progress"), true);
assert.match(await page.textContent("#said"), /\.jpg: (cat|dog)\. [\d.]+ %$/, "answers are announced");
await page.unroute("**/predict");

// A request to an overloaded service is repeated after Retry-After; other errors are shown, and can be tried again.
await page.reload();
const statuses = [503, 200, 500, 200];
await page.route("**/predict", route => {
  const status = statuses.shift();
  const detail = status === 503 ? "too many images are waiting; try again in 1 s" : "the server failed; see its log";
  route.fulfill(status === 200 ? { json: answer } : { status, headers: { "Retry-After": status === 503 ? "1" : "" }, json: { detail } });
});
await page.setInputFiles("#file", photo);
await page.waitForSelector("text=The server is busy. Next try in 1 s.");
await settled(page, 1);
await page.setInputFiles("#file", photo);
await settled(page, 2);
await opened(page, 2);
assert.equal(await page.textContent("#reason"), "The server failed; see its log.");
await page.click("#again");
await page.waitForSelector("#view.done");
assert.deepEqual(statuses, []);
await page.unroute("**/predict");

// A service with keys: a wrong one is asked for again.
await page.reload();
await page.route("**/predict", route => route.request().headers()["x-api-key"] === "secret" ? route.fulfill({ json: answer })
  : route.fulfill({ status: 401, json: { detail: "an API key is needed" } }));
await page.setInputFiles("#file", photo);
for (const key of ["wrong", "secret"]) {
  await page.waitForSelector("#ask[open]");
  assert.equal(await focused(page), "key");
  await page.fill("#key", key);
  await page.keyboard.press("Enter");
  await page.waitForFunction(key => sessionStorage.getItem("key") === key, key);
}
await settled(page, 1);
assert.equal(await page.evaluate(() => localStorage.length), 0);
await page.evaluate(() => sessionStorage.clear());
await page.unroute("**/predict");

// Both reasons for an unsure answer, independent of the model's answer for this image.
await page.reload();
for (const [reason, message, shown] of [
  ["out_of_distribution", "This does not look like a cat or a dog.", "This does not look like a cat or a dog."],
  ["low_confidence", "The confidence is too low for a decision.",
    `Perhaps a ${label}, but the confidence is too low for a decision.`],
]) {
  await fulfilled(page, { ...answer, decision: "unsure", reason, message, ood_score: 1.5 }, async () => {
    assert.equal(await page.textContent("#answer"), "Unsure");
    assert.equal(await page.textContent("#reason"), shown);
    assert.equal(await page.isVisible("#reason"), true);
    assert.deepEqual(await page.locator("#labels button").allTextContents(), [`It is a ${label}`, `It is a ${other}`]);
    await page.waitForSelector("#heat:not([hidden])");
    await page.screenshot({ path: `${shots}/page-${reason}.png` });
  });
}

// A multi-label model's answer: all labels, or none; they can be corrected.
for (const labels of [["dog", "cat"], []]) {
  const several = labels.map(label => ({ label, probability: 0.9 }));
  await fulfilled(page, { ...answer, decision: "answered", reason: null, message: null, labels: several }, async () => {
    assert.equal(await page.textContent("#answer"), labels.join(", ") || "None of the labels");
    assert.deepEqual(await page.locator("#labels button").allTextContents(), ["Yes, all right"]);
    await page.click("#checks input >> nth=0");
    assert.deepEqual(await page.locator("#labels button").allTextContents(), ["Send these labels"]);
  });
}

// A model of many classes: the likeliest as bars, the others in a list.
const probabilities = Object.fromEntries([..."abcdefghij"].map((name, place) => [`breed ${name}`, place ? 0.05 : 0.55]));
await fulfilled(page, { ...answer, decision: "breed a", predicted_class: "breed a", reason: null, probabilities }, async () => {
  assert.equal(await page.locator("#bars [role=meter]").count(), 5);
  assert.equal(await page.locator("#labels option").count(), 10);
  assert.equal(await page.textContent("#title"), "What is in the photo?");
  await page.screenshot({ path: `${shots}/page-many.png` });
});

// Several models: the chosen one is named in the requests, and classifies the images again.
const asked = [];
await page.route(address, route => route.request().resourceType() === "fetch"
  ? route.fulfill({ json: { models: ["cats-vs-dogs", "big & small"] } }) : route.continue());
await page.route(/\/predict\?/, route => { asked.push(new URL(route.request().url()).search); route.fulfill({ json: answer }); });
await page.reload();
await page.waitForSelector("#model:not([hidden])");
await page.setInputFiles("#file", photo);
await settled(page, 1);
await page.selectOption("#model", "big & small");
await page.waitForFunction(() => document.querySelector(".card.done") && document.getElementById("progress").hidden);
assert.deepEqual(asked, ["?model=cats-vs-dogs", "?model=big%20%26%20small"]);
await page.unrouteAll();

// Drop and paste, two images each.
for (const kind of ["drop", "paste"]) {
  await page.reload();
  assert.equal(await page.isHidden("#model"), true);
  await page.evaluate(([kind, bytes]) => {
    const data = new DataTransfer();
    for (const name of ["one.jpg", "two.jpg"]) data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
    const event = kind === "drop"
      ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
      : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
    document.body.dispatchEvent(event);
  }, [kind, [...bytes]]);
  await settled(page, 2);
  assert.equal(await page.textContent("#summary"), `2 photos: 2 ${label}`, kind);
}

// The camera: a live view, two shots, and tracks that end with the dialog; a camera that is refused.
await page.reload();
await page.click("#camera");
await page.waitForSelector("#shutter:enabled");
assert.equal(await focused(page), "shutter");
await page.keyboard.press("Enter");
await page.waitForSelector("text=1 photo taken.");
await page.keyboard.press("Enter");
await page.waitForSelector("text=2 photos taken.");
await page.screenshot({ path: `${shots}/page-camera.png` });
await page.evaluate(() => { window.tracks = document.getElementById("video").srcObject.getTracks(); });
await page.keyboard.press("Escape");
await page.waitForFunction(() => window.tracks.length && window.tracks.every(track => track.readyState === "ended"));
await page.waitForFunction(() => document.activeElement.id === "camera");
await settled(page, 2);
await page.evaluate(() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", "NotAllowedError")); });
await page.click("#camera");
await page.waitForSelector("text=The browser does not let this page use the camera.");
const chosen = page.waitForEvent("filechooser");
await page.click("#instead");
await (await chosen).setFiles(photo);
await settled(page, 3);
assert.deepEqual(complaints.filter(text => !/status of (400|401|500|503)/.test(text)), []);
await page.close();

// A phone's and a desktop's screen, light and dark: no sideways scrolling, and targets that a finger hits.
for (const colorScheme of ["light", "dark"]) for (const [width, height] of [[360, 740], [390, 844], [1280, 800]]) {
  const phone = width < 700;
  const look = await open({ viewport: { width, height }, colorScheme, isMobile: phone, hasTouch: phone });
  const shot = name => look.page.screenshot({ path: `${shots}/page-${colorScheme}-${width}-${name}.png` });
  await look.page.waitForLoadState("networkidle");
  await shot("empty");
  await look.page.setInputFiles("#file", [named("cat.jpg"), broken, named("again.jpg")]);
  await settled(look.page, 3);
  await shot("photos");
  const fits = () => look.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
  const small = () => look.page.locator("button, select, label.button, input[type=range]").evaluateAll(all => all
    .filter(one => one.checkVisibility()).map(one => [one.id || one.textContent, one.getBoundingClientRect()])
    .filter(([, box]) => box.height < 44 || box.width < 44).map(([name]) => name));
  assert.deepEqual([await fits(), await small()], [true, []]);
  await opened(look.page, 1);
  await look.page.waitForSelector("#heat:not([hidden])");
  await shot("view");
  assert.deepEqual([await fits(), await small()], [true, []]);
  assert.deepEqual(look.complaints.filter(text => !/status of 400/.test(text)), []);
  await look.page.close();
}

// Behind a prefix that a proxy takes off, as an ingress does: no request leaves the prefix.
const outside = [];
const { hostname: host, port, pathname } = new URL(address);
const proxy = createServer((asked, reply) => {
  if (!asked.url.startsWith("/pets/")) {
    outside.push(asked.url);
    reply.writeHead(404).end();
    return;
  }
  const to = { host, port, path: pathname + asked.url.slice(6), method: asked.method, headers: asked.headers };
  asked.pipe(forward(to, answer => { reply.writeHead(answer.statusCode, answer.headers); answer.pipe(reply); }));
});
await new Promise(resolve => proxy.listen(0, "127.0.0.1", resolve));
const prefix = `http://127.0.0.1:${proxy.address().port}/pets/`;
const prefixed = await open(desktop, prefix);
prefixed.page.on("request", request => { if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(prefix)) outside.push(request.url()); });
await prefixed.page.setInputFiles("#file", photo);
await settled(prefixed.page, 1);
await opened(prefixed.page, 1);
await prefixed.page.waitForSelector("#heat:not([hidden])");
await prefixed.page.click("#labels button >> nth=0");
await prefixed.page.waitForFunction(() => /^Noted/.test(document.getElementById("judged").textContent));
for (const link of await prefixed.page.locator("a[href]").evaluateAll(links => links.map(link => link.href))) {
  if (!link.startsWith("http://127.0.0.1")) continue;
  assert.ok(link.startsWith(prefix), link);
  // A listener of its own may have the metrics.
  assert.match(String((await fetch(link)).status), link.endsWith("metrics") ? /^(200|401)$/ : /^200$/, link);
}

// The documentation lists every operation, and sends requests: an image, several images, and one without a body.
const described = await (await fetch(address + "openapi.json")).json();
const operations = Object.values(described.paths).flatMap(Object.keys).length;
for (const colorScheme of ["light", "dark"]) for (const [width, height] of [[390, 844], [1280, 800]]) {
  const docs = await open({ viewport: { width, height }, colorScheme, isMobile: width < 700 }, prefix + "docs");
  docs.page.on("request", request => { if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(prefix)) outside.push(request.url()); });
  await docs.page.waitForSelector(".opblock");
  assert.equal(await docs.page.locator(".opblock").count(), operations);
  assert.equal(await docs.page.evaluate(() => document.documentElement.classList.contains("dark-mode")), colorScheme === "dark");
  for (const [path, files, found] of [
    ["/predict", true, /"predicted_class": "(cat|dog)"/],
    ["/predict/batch", true, /"predictions": \[\s+\{\s+"predicted_class"/],
    ["/version", false, /"name": "petnet-serve"/],
  ]) {
    const { operationId: id } = Object.values(described.paths[path])[0];
    const block = docs.page.locator(`[id$="-${id}"]`);
    await block.locator(".opblock-summary-control").click();
    if (files) await block.locator("input[type=file]").setInputFiles(photo);
    await block.locator(".execute").click();
    await block.locator(".live-responses-table .response-col_status").first().waitFor();
    assert.match(await block.locator(".live-responses-table tbody .response-col_status").first().textContent(), /200/);
    assert.match(await block.locator(".live-responses-table .highlight-code").first().textContent(), found);
    await docs.page.screenshot({ path: `${shots}/docs-${colorScheme}-${width}-${id}.png` });
  }
  assert.equal(await docs.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true);
  assert.deepEqual(docs.complaints, []);
  await docs.page.close();
}
assert.deepEqual([outside.filter(path => path !== "/favicon.ico"), prefixed.complaints], [[], []]);
proxy.close();
proxy.closeAllConnections();
await browser.close();
console.log(`the page works: ${label}; screenshots in ${shots}`);
