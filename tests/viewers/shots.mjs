// SPDX-License-Identifier: Apache-2.0
// Pictures of splat files in a headless browser.
//
//   node shots.mjs CHROMIUM BUILD < jobs.json > answers.json
//
// A job is {viewer, file, out, ...camera} or {viewer: "html", file, out, width, height}. An answer
// is {ok} or {error}, and for every job the requests that left the page. BUILD is a folder for the
// bundled pages. Files are served from 127.0.0.1; every other request is refused and told.
//
// A job that is not done after its limitMs is given up, and the next one begins: a viewer may wait
// for ever for what a file does not have, and then says nothing.
import { build } from "esbuild";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const LIMIT_MS = 30000;
const here = dirname(fileURLToPath(import.meta.url));
const [executablePath, built] = process.argv.slice(2);
const jobs = JSON.parse(readFileSync(0, "utf8"));
const served = new Map(); // path on the server -> file

for (const viewer of new Set(jobs.map((job) => job.viewer).filter((name) => name !== "html"))) {
  const outfile = join(built, `${viewer}.js`);
  await build({
    entryPoints: [join(here, `${viewer}_page.js`)],
    bundle: true,
    format: "esm",
    outfile,
    logLevel: "error",
  });
  served.set(`/${viewer}.js`, outfile);
  const page = join(built, `${viewer}.html`);
  writeFileSync(page, `<!doctype html><body style="margin:0"><script type="module" src="/${viewer}.js"></script>`);
  served.set(`/${viewer}.html`, page);
}

const types = { html: "text/html", js: "text/javascript" };
const server = createServer((request, response) => {
  const path = decodeURIComponent(new URL(request.url, "http://x").pathname);
  if (!served.has(path)) return response.writeHead(404).end();
  const type = types[path.split(".").pop()] ?? "application/octet-stream";
  response.writeHead(200, { "content-type": type }).end(readFileSync(served.get(path)));
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const home = `http://127.0.0.1:${server.address().port}`;

const profile = mkdtempSync(join(tmpdir(), "shots-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  viewport: { width: 512, height: 512 },
  args: [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
  ],
});

// A screenshot once two in a row, a second apart, are the same and not plain; or after 'waitMs',
// where that is given.
async function still(page, job) {
  const deadline = Date.now() + (job.waitMs ?? LIMIT_MS);
  let last = "";
  do {
    await page.waitForTimeout(1000);
    const shot = await page.screenshot({ path: job.out });
    const same = shot.equals(Buffer.from(last, "base64"));
    if (same && shot.length > (job.plainBytes ?? 8000)) return;
    last = shot.toString("base64");
  } while (Date.now() < deadline);
  if (job.waitMs !== undefined) return;
  throw new Error(`${basename(job.file)}: still moves or is plain after ${LIMIT_MS / 1000} s`);
}

// What 'work' comes to, or an error once 'ms' have passed.
async function within(ms, what, work) {
  let timer;
  const bound = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`${what}: not done within ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([work, bound]);
  } finally {
    clearTimeout(timer);
  }
}

async function draw(page, job, index) {
  const path = `/${index}/${basename(job.file)}`;
  served.set(path, job.file);
  await page.goto(`${home}/${job.viewer}.html`);
  await page.waitForFunction(() => window.draw);
  const data = await page.evaluate((given) => window.draw(given), { ...job, url: home + path });
  writeFileSync(job.out, Buffer.from(data.split(",")[1], "base64"));
}

async function shoot(job, index) {
  const page = await browser.newPage();
  const refused = [];
  const said = [];
  page.on("pageerror", (error) => said.push(String(error)));
  page.on("console", (line) => line.type() === "error" && said.push(line.text()));
  const allowed = job.viewer === "html" ? [pathToFileURL(job.file).href] : [home];
  await page.route("**/*", (route) => {
    const url = route.request().url();
    if (url.startsWith("blob:") || url.startsWith("data:")) return route.continue();
    if (allowed.some((start) => url.startsWith(start))) return route.continue();
    refused.push(url.slice(0, 200));
    return route.abort();
  });
  try {
    if (job.viewer === "html") {
      await page.setViewportSize({ width: job.width, height: job.height });
      await page.goto(pathToFileURL(job.file).href + (job.query ?? ""));
      await still(page, job);
    } else {
      const what = `${job.viewer}, ${basename(job.file)}`;
      await within(job.limitMs ?? LIMIT_MS, what, draw(page, job, index));
    }
    return { ok: true, refused, said };
  } catch (error) {
    return { error: String(error).slice(0, 1000), refused, said };
  } finally {
    await page.close();
  }
}

const answers = [];
try {
  for (const [index, job] of jobs.entries()) answers.push(await shoot(job, index));
} finally {
  await browser.close();
  server.close();
  rmSync(profile, { recursive: true, force: true });
}
process.stdout.write(JSON.stringify(answers));
