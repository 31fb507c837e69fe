// Drives the page of examples/web; run by scripts/web-test.sh.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(process.env.MODULES)("playwright-core");
const [answers, shots] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 900, height: 760 } });
const page = await context.newPage();
const complaints = [];
page.on("console", message => { if (message.type() === "error") complaints.push(message.text()); });
page.on("pageerror", error => complaints.push(String(error)));
await page.goto("http://127.0.0.1:18801/");
await page.waitForFunction(() => /Ready/.test(document.getElementById("status").textContent));
console.log(await page.textContent("#status"));
await context.setOffline(true);

const drop = (name, bytes) => page.evaluate(([name, bytes]) => {
  delete document.getElementById("status").dataset.ms;
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}, [name, [...bytes]]);
const answered = async () => {
  const status = await page.waitForFunction(() => document.getElementById("status").dataset.ms);
  return Number(await status.jsonValue());
};

for (const { path, label, decision, probabilities } of readFileSync(answers, "utf8").trim().split("\n").map(JSON.parse)) {
  const times = [];
  for (let turn = 0; turn < 15; turn++) {
    await drop(path, readFileSync(path));
    times.push(await answered());
  }
  times.sort((a, b) => a - b);
  assert.equal(await page.textContent("#answer"), decision === "answered" ? label : "unsure");
  const shown = await page.locator("meter").evaluateAll(meters => meters.map(meter => meter.value));
  Object.values(probabilities).forEach((expected, place) => {
    // The page computes in floats, the reference in bytes where the CPU can.
    assert.ok(Math.abs(shown[place] - expected) < 0.05, `${path}: ${shown} is not ${JSON.stringify(probabilities)}`);
  });
  console.log(`${path}: ${label}, median ${times[7].toFixed(1)} ms, slowest ${times[14].toFixed(1)} ms`);
  if (path.includes("cat")) await page.screenshot({ path: `${shots}/web.png` });
}

await page.setInputFiles("#file", { name: "notes.jpg", mimeType: "image/jpeg", buffer: Buffer.from("no photo") });
await page.waitForSelector(".error");
assert.match(await page.textContent("#status"), /not a JPEG/);
assert.equal(await page.isHidden("#result"), true);
assert.deepEqual(complaints, []);
await browser.close();
console.log("the page works offline");
