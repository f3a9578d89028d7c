// The page in the other browser: firefox-esr, which has no driver here, draws it into a picture.
import assert from "node:assert/strict";
import {spawn} from "node:child_process";
import {once} from "node:events";
import {copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from "node:fs";
import {createServer} from "node:http";
import {join} from "node:path";
import {after, test} from "node:test";
import {pathToFileURL} from "node:url";
import {coloursOf} from "./png.mjs";
import {at, read, skip, tool} from "./tools.mjs";

const firefox = process.env.MIXED_KV_FIREFOX ?? ["/usr/bin/firefox-esr", "/usr/bin/firefox"].find(existsSync);
if (!firefox) skip("no Firefox found; apt-get install firefox-esr, or set MIXED_KV_FIREFOX");

// Firefox takes its picture at the load event, and the page draws itself after it. So the page lies in a frame of one
// that also waits for an image, which comes late.
const clock = createServer((request, response) => setTimeout(() => response.end(), Number(request.url.slice(1)))).listen(0, "127.0.0.1");
await once(clock, "listening");
after(() => clock.close());

function framed(url, milliseconds) {
    const file = at("frame.html");
    writeFileSync(file, `<!doctype html><style>body { margin: 0 } iframe { border: 0; width: 1320px; height: 1600px }</style>
        <iframe src="${url}"></iframe><img hidden src="http://127.0.0.1:${clock.address().port}/${milliseconds}">`);
    return pathToFileURL(file).href;
}

// The picture, or an error after three minutes.
function picture(url, file) {
    const profile = mkdtempSync(at("firefox-"));
    return new Promise((resolve, reject) => {
        const browser = spawn(firefox, ["--headless", "--no-remote", "--profile", profile, "--window-size", "1320,1600", "--screenshot", file, url],
            {stdio: "ignore", env: {...process.env, HOME: profile, MOZ_DISABLE_CONTENT_SANDBOX: "1"}});
        const limit = setTimeout(() => browser.kill("SIGKILL"), 180000);
        browser.on("error", reject);
        browser.on("exit", (code, signal) => {
            clearTimeout(limit);
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
        let found;
        // A busy machine needs longer to draw.
        for (const milliseconds of [2000, 10000, 40000]) {
            found = coloursOf(await picture(framed(pathToFileURL(page).href + place, milliseconds), file));
            if (found.colours.has("0b62c4")) break;
        }
        if (process.env.MIXED_KV_SCREENSHOTS) {
            mkdirSync(process.env.MIXED_KV_SCREENSHOTS, {recursive: true});
            copyFileSync(file, join(process.env.MIXED_KV_SCREENSHOTS, `firefox-${name}.png`));
        }
        assert.ok(found.width >= 1200, `${name}: ${found.width} wide`);
        // Text on an empty page has a dozen greys; a drawn one has the colours of its charts and tabs.
        assert.ok(found.colours.has("0b62c4"), `${name}: nothing in the colour of tabs and charts`);
        assert.ok(found.colours.size > 40, `${name}: ${found.colours.size} colours`);
    }
});
