// Drives the page; run by scripts/page-test.sh.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer, request as forward } from "node:http";
import { createRequire } from "node:module";

const { chromium } = createRequire(process.env.MODULES)("playwright-core");
const [photo, shots] = process.argv.slice(2);
const address = "http://127.0.0.1:18800/";
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });

// The service's own answer, as if the model were not unsure of a drawing. A route could not pass the file on.
function decided() {
  const real = window.fetch;
  window.fetch = async (...request) => {
    const reply = await real(...request);
    if (!String(request[0]).endsWith("predict") || !reply.ok || reply.headers.has("x-as-it-is")) return reply;
    const answer = await reply.json();
    const body = { ...answer, decision: answer.predicted_class, reason: null, message: null };
    return new Response(JSON.stringify(body), { status: reply.status, headers: reply.headers });
  };
}

async function open(options, where = address) {
  const page = await browser.newPage(options);
  const complaints = [];
  await page.addInitScript(decided);
  page.on("console", message => { if (message.type() === "error") complaints.push(message.text()); });
  page.on("pageerror", error => complaints.push(String(error)));
  await page.goto(where);
  return { page, complaints };
}

async function answered(page) {
  await page.waitForFunction(() => !document.getElementById("result").hidden
    && document.getElementById("heat").src.startsWith("data:image/png"));
  const label = await page.textContent("#answer");
  assert.match(label, /^(cat|dog)$/, "the photo must be one that the model answers");
  assert.equal(await page.isHidden("#reason"), true);
  assert.equal(await page.locator("[role=meter]").count(), 2);
  return label;
}

// Choose a file, look at the heat map.
const { page, complaints } = await open({ viewport: { width: 1100, height: 900 } });
const predicted = page.waitForResponse(reply => reply.url().endsWith("/predict"));
await page.setInputFiles("#file", photo);
const label = await answered(page);
const answer = await (await predicted).json();
await page.screenshot({ path: `${shots}/page.png` });
await page.click("#why");
assert.equal(await page.getAttribute("#why", "aria-pressed"), "true");
await page.waitForTimeout(400);
await page.screenshot({ path: `${shots}/page-heat.png` });

// A person's word on the answer.
await page.waitForSelector("#labels button");
const other = label === "cat" ? "dog" : "cat";
assert.deepEqual(await page.locator("#labels button").allTextContents(), [`Yes, a ${label}`, `No, it is a ${other}`]);
await page.screenshot({ path: `${shots}/page-judge.png` });
await page.click("#labels button:nth-child(2)");
await page.waitForFunction(() => /Noted/.test(document.getElementById("judged").textContent));
const given = (await (await fetch(address + "feedback/export")).text()).trim().split("\n").map(line => JSON.parse(line));
assert.equal(given.length, 1);
assert.deepEqual([given[0].predicted_class, given[0].label], [label, other]);

// Both reasons for an unsure answer, whatever the model at hand says of this photo.
for (const [reason, message, shown] of [
  ["out_of_distribution", "This does not look like a cat or a dog.", "This does not look like a cat or a dog."],
  ["low_confidence", "The confidence is too low for a decision.",
    `Perhaps a ${label}, but the confidence is too low for a decision.`],
]) {
  await page.reload();
  await page.route("**/predict", route =>
    route.fulfill({ headers: { "x-as-it-is": "1" }, json: { ...answer, decision: "unsure", reason, message, ood_score: 1.5 } }));
  await page.setInputFiles("#file", photo);
  await page.waitForSelector("#labels button");
  assert.equal(await page.textContent("#answer"), "Unsure");
  assert.equal(await page.textContent("#reason"), shown);
  assert.equal(await page.isVisible("#reason"), true);
  assert.deepEqual(await page.locator("#labels button").allTextContents(), [`It is a ${label}`, `It is a ${other}`]);
  await page.screenshot({ path: `${shots}/page-${reason}.png` });
  await page.unroute("**/predict");
}

// A multi-label model's answer: all labels, or none.
for (const labels of [["dog", "cat"], []]) {
  await page.reload();
  const several = labels.map(label => ({ label, probability: 0.9 }));
  await page.route("**/predict", route =>
    route.fulfill({ headers: { "x-as-it-is": "1" }, json: { ...answer, decision: "answered", reason: null, message: null, labels: several } }));
  await page.setInputFiles("#file", photo);
  await page.waitForSelector("#labels button");
  assert.equal(await page.textContent("#answer"), labels.join(", ") || "None of the labels");
  assert.deepEqual(await page.locator("#labels button").allTextContents(), ["Yes, all right"]);
  await page.unroute("**/predict");
}

// Drop and paste.
for (const kind of ["drop", "paste"]) {
  await page.reload();
  const bytes = [...readFileSync(photo)];
  await page.evaluate(([kind, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "photo.jpg", { type: "image/jpeg" }));
    const event = kind === "drop"
      ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
      : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
    document.body.dispatchEvent(event);
  }, [kind, bytes]);
  assert.equal(await answered(page), label, kind);
}

// The keyboard reaches everything, and arrows change the language.
await page.reload();
const reached = [];
for (let step = 0; step < 5; step++) {
  await page.keyboard.press("Tab");
  reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.dataset.language));
}
assert.deepEqual(reached.slice(0, 3), ["file", "camera", "curl"]);
await page.focus("[data-language=curl]");
await page.keyboard.press("ArrowRight");
assert.match(await page.textContent("#snippet"), /import requests/);

// A file that is no photo: a message, no result.
await page.setInputFiles("#file", { name: "notes.jpg", mimeType: "image/jpeg", buffer: Buffer.from("no photo") });
await page.waitForSelector(".error");
assert.match(await page.textContent("#status"), /not a JPEG/);
assert.equal(await page.isHidden("#result"), true);
assert.deepEqual(complaints.filter(text => !/status of 400/.test(text)), []);

// A phone.
const phone = await open({ viewport: { width: 375, height: 740 }, isMobile: true, deviceScaleFactor: 2 });
await phone.page.setInputFiles("#file", photo);
await answered(phone.page);
assert.ok(await phone.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "no sideways scrolling");
await phone.page.screenshot({ path: `${shots}/page-phone.png` });
assert.deepEqual(phone.complaints, []);

// Behind a prefix that a proxy takes off, as an ingress does: no request leaves the prefix.
const outside = [];
const proxy = createServer((asked, reply) => {
  if (!asked.url.startsWith("/pets/")) {
    outside.push(asked.url);
    reply.writeHead(404).end();
    return;
  }
  const to = { host: "127.0.0.1", port: 18800, path: asked.url.slice(5), method: asked.method, headers: asked.headers };
  asked.pipe(forward(to, answer => { reply.writeHead(answer.statusCode, answer.headers); answer.pipe(reply); }));
});
await new Promise(resolve => proxy.listen(0, "127.0.0.1", resolve));
const prefixed = await open({ viewport: { width: 1100, height: 900 } }, `http://127.0.0.1:${proxy.address().port}/pets/`);
await prefixed.page.setInputFiles("#file", photo);
assert.equal(await answered(prefixed.page), label);
await prefixed.page.waitForSelector("#labels button");
for (const link of await prefixed.page.locator("a[href]").evaluateAll(links => links.map(link => link.href))) {
  if (!link.startsWith("http://127.0.0.1")) continue;
  assert.equal((await fetch(link)).status, 200, link);
}
await prefixed.page.goto(prefixed.page.url() + "docs");
await prefixed.page.waitForSelector("details");
assert.deepEqual([outside.filter(path => path !== "/favicon.ico"), prefixed.complaints], [[], []]);
proxy.close();
proxy.closeAllConnections();

// The documentation lists every path.
await page.goto(address + "docs");
await page.waitForSelector("details");
assert.equal(await page.locator("details").count(), 28);
await page.screenshot({ path: `${shots}/docs.png` });
await browser.close();
console.log(`the page works: ${label}; screenshots in ${shots}`);
