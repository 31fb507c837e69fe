// Drives the review's page; run by scripts/review-test.sh.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(process.env.MODULES)("playwright-core");
const [review, shots] = process.argv.slice(2);
const address = "http://127.0.0.1:18801/";
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1180, height: 860 } });
const complaints = [];
page.on("console", message => { if (message.type() === "error") complaints.push(message.text()); });
page.on("pageerror", error => complaints.push(String(error)));
for (let attempt = 0; ; attempt++) {
  try { await page.goto(address); break; } catch (error) {
    if (attempt > 300) throw error;
    await new Promise(done => setTimeout(done, 1000));
  }
}
const rows = () => readFileSync(`${review}/corrections.csv`, "utf8").trim().split("\n").slice(1);
const cards = page.locator("figure");
assert.ok(await cards.count() > 0);

// By keys: relabel the first, keep the second, drop the third, take the second back.
await cards.nth(0).focus();
for (const [key, said] of [["r", "1 decisions"], ["k", "2 decisions"], ["d", "3 decisions"]]) {
  await page.keyboard.press(key);
  await page.waitForFunction(text => document.getElementById("status").textContent.startsWith(text), said);
}
assert.deepEqual(rows().map(row => row.split(",").at(-1)).sort(), ["drop", "keep", "relabel"]);
await page.screenshot({ path: `${shots}/review.png` });
await cards.nth(1).focus();
await page.keyboard.press("u");
await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("2 decisions"));
assert.equal(rows().length, 2);

// Decisions are there after a reload, and every list has its images.
await page.reload();
await page.waitForFunction(() => document.querySelectorAll("figure.drop, figure.relabel").length === 2);
for (const id of ["duplicates", "outliers", "blurred", "dark", "tiny"]) {
  await page.click(`#tab-${id}`);
  await page.waitForTimeout(700);
  await page.screenshot({ path: `${shots}/review-${id}.png` });
}
const phone = await browser.newPage({ viewport: { width: 390, height: 800 } });
await phone.goto(address);
await phone.waitForTimeout(700);
assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "no sideways scrolling");
await phone.screenshot({ path: `${shots}/review-phone.png` });

// Another site's page may not decide.
const foreign = await fetch(`${address}decide`, { method: "POST", headers: { "sec-fetch-site": "cross-site" }, body: "{}" });
assert.equal(foreign.status, 400);
assert.deepEqual(complaints, []);
await browser.close();
console.log("ok  the page of the review");
