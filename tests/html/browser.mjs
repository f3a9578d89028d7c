// A headless Chromium for tests of pages: the system's, driven by playwright-core.
import {existsSync, mkdirSync, mkdtempSync, rmSync} from "node:fs";
import {createRequire} from "node:module";
import {tmpdir} from "node:os";
import {join} from "node:path";
import {pathToFileURL} from "node:url";
import {root, skip} from "./tools.mjs";

const executable = process.env.MIXED_KV_CHROMIUM ??
    ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
if (!executable) skip("no Chromium found; scripts/setup.sh browser installs one, or set MIXED_KV_CHROMIUM");
if (!existsSync(join(root, "node_modules/playwright-core/package.json")))
    skip("playwright-core is not installed; scripts/setup.sh browser installs it");
const {chromium} = createRequire(join(root, "package.json"))("playwright-core");

const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"];

// Opens a page from a file, waits until it is drawn and calls `use` with it. Everything that must not happen is
// collected on the way: errors on the console, exceptions, requests for anything but the file itself.
export async function withPage(file, use, {theme = "light", print = false} = {}) {
    const profile = mkdtempSync(join(tmpdir(), "mixed-kv-browser-"));
    const context = await chromium.launchPersistentContext(profile, {
        executablePath: executable, headless: true, args: flags, viewport: {width: 1320, height: 900}, colorScheme: theme
    });
    const problems = [];
    try {
        const page = context.pages()[0] ?? await context.newPage();
        const url = pathToFileURL(file).href;
        page.on("console", (message) => {
            if (["error", "warning"].includes(message.type())) problems.push(`console: ${message.text()}`);
        });
        page.on("pageerror", (error) => problems.push(`exception: ${error.message}`));
        page.on("dialog", (dialog) => {
            problems.push(`dialog: ${dialog.message()}`);
            dialog.dismiss();
        });
        context.on("request", (request) => {
            if (request.url().split("#")[0] !== url && !request.url().startsWith("blob:")) problems.push(`request: ${request.url()}`);
        });
        const metrics = await context.newCDPSession(page);
        await metrics.send("Performance.enable", {timeDomain: "threadTicks"});
        await page.goto(url);
        await page.waitForSelector("body[data-drawn], #problem", {timeout: 60000});
        // Of the page's thread, as processor time: what a clock shows when nothing else runs.
        const seconds = (await metrics.send("Performance.getMetrics")).metrics.find((m) => m.name === "TaskDuration").value;
        if (print) await page.emulateMedia({media: "print"});
        await use(page, {seconds});
    } finally {
        await context.close();
        rmSync(profile, {recursive: true, force: true});
    }
    return problems;
}

// Goes to an address of the page and waits until it is drawn.
export async function go(page, hash) {
    await page.evaluate((h) => {
        delete document.body.dataset.drawn;
        if (location.hash === h) dispatchEvent(new HashChangeEvent("hashchange")); else location.hash = h;
    }, hash);
    await drawn(page);
}

export async function drawn(page) {
    await page.waitForSelector("body[data-drawn]", {timeout: 60000});
}

// Clicks what draws the present view anew, and waits until it is drawn.
export async function click(page, selector) {
    await page.evaluate(() => delete document.body.dataset.drawn);
    await page.click(selector);
    await drawn(page);
}

// Clicks, and waits for the view that the click leads to.
export async function clickTo(page, target, view) {
    await target.click();
    await page.waitForFunction((v) => document.body.dataset.drawn?.startsWith(v), view, {timeout: 60000});
}

export async function screenshot(page, name) {
    const folder = process.env.MIXED_KV_SCREENSHOTS;
    if (!folder) return;
    mkdirSync(folder, {recursive: true});
    await page.screenshot({path: join(folder, `${name}.png`), fullPage: true});
}
