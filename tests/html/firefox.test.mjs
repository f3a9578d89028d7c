// The page in the other browser: firefox-esr, which has no driver here, draws it into a picture.
import assert from "node:assert/strict";
import {spawn} from "node:child_process";
import {copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync} from "node:fs";
import {join} from "node:path";
import {test} from "node:test";
import {pathToFileURL} from "node:url";
import {coloursOf} from "./png.mjs";
import {at, read, skip, tool} from "./tools.mjs";

const firefox = process.env.MIXED_KV_FIREFOX ?? ["/usr/bin/firefox-esr", "/usr/bin/firefox"].find(existsSync);
if (!firefox) skip("no Firefox found; apt-get install firefox-esr, or set MIXED_KV_FIREFOX");

// A whole picture of the page, or an error after two minutes.
function picture(url, file) {
    const profile = mkdtempSync(at("firefox-"));
    return new Promise((resolve, reject) => {
        const browser = spawn(firefox, ["--headless", "--no-remote", "--profile", profile, "--window-size", "1320,900", "--screenshot", file, url],
            {stdio: "ignore", env: {...process.env, HOME: profile, MOZ_DISABLE_CONTENT_SANDBOX: "1"}});
        const clock = setTimeout(() => browser.kill("SIGKILL"), 120000);
        browser.on("error", reject);
        browser.on("exit", (code, signal) => {
            clearTimeout(clock);
            rmSync(profile, {recursive: true, force: true, maxRetries: 5});
            if (existsSync(file)) resolve(readFileSync(file)); else reject(new Error(`no picture: ended with ${code ?? signal}`));
        });
    });
}

test("every view is drawn", async () => {
    const trace = at("streams.gguf");
    tool("make-test-trace", "streams", "-o", trace);
    const {page} = read(trace);
    for (const [name, place] of [["map", "#map"], ["pages", "#pages/0/2"], ["heads", "#heads/0/2"], ["layout", "#layout/0/2"]]) {
        const file = at(`firefox-${name}.png`);
        const {width, colours} = coloursOf(await picture(pathToFileURL(page).href + place, file));
        if (process.env.MIXED_KV_SCREENSHOTS) {
            mkdirSync(process.env.MIXED_KV_SCREENSHOTS, {recursive: true});
            copyFileSync(file, join(process.env.MIXED_KV_SCREENSHOTS, `firefox-${name}.png`));
        }
        assert.ok(width >= 1200, `${name}: ${width} wide`);
        // Text on an empty page has a dozen greys; a drawn one has the colours of its charts and tabs.
        assert.ok(colours.has("0b62c4"), `${name}: nothing in the colour of tabs and charts`);
        assert.ok(colours.size > 40, `${name}: ${colours.size} colours`);
    }
});
