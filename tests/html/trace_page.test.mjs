// kqv-tensor-reader --html in a browser: traces of several models, a broken layout, a hostile file.
import assert from "node:assert/strict";
import {readFileSync, statSync, writeFileSync} from "node:fs";
import {join} from "node:path";
import {describe, test} from "node:test";
import {accessibilityProblems} from "./accessibility.mjs";
import {click, clickTo, go, screenshot, withPage} from "./browser.mjs";
import {at, bundled, randomModel, read, record, root, tool, words} from "./tools.mjs";

const raw = async (page, name) => JSON.parse(await page.getAttribute(`[data-figure="${name}"]`, "data-raw"));
const text = (page, name) => page.textContent(`[data-figure="${name}"]`);

// What every page must do: all views of some records, figures as in the JSON, nothing untoward.
async function tour(name, {page: file, json}, use = async () => {}) {
    const problems = await withPage(file, async (page, {seconds}) => {
        console.log(`${name}: ${(statSync(file).size / 1e6).toFixed(2)} MB, opened in ${seconds.toFixed(2)} s of CPU time`);
        assert.equal(await page.$("#problem"), null, "the page says that it cannot be shown");
        assert.equal(await page.textContent("#verdict"), json.pass ? "PASS" : "FAIL");
        assert.equal(await text(page, "steps"), String(json.steps));
        assert.equal(await text(page, "layers"), String(json.layers));
        assert.equal(await raw(page, "max_error"), json.max_error);
        const records = json.records.filter((r) => r.checked);
        for (const r of [records[0], records[Math.floor(records.length / 2)], records[records.length - 1]]) {
            await go(page, `#pages/${r.layer}/${r.step}`);
            assert.match(await page.textContent("#place"), new RegExp(`^layer ${r.layer}, step ${r.step}$`));
            if (await page.$("#no-detail")) continue;
            assert.equal(await raw(page, "limit_share"), r.limit_share);
            assert.equal(await raw(page, "record_max_error"), r.max_error);
            assert.equal(await text(page, "n_hot"), String(r.n_hot));
            assert.equal(await text(page, "n_cold"), String(r.n_cold));
            for (const view of ["heads", "layout"]) {
                await go(page, `#${view}/${r.layer}/${r.step}`);
                assert.ok(await page.$("#view svg, #view table"), `${view} of layer ${r.layer}, step ${r.step} is empty`);
            }
        }
        const last = records[records.length - 1];
        for (const view of ["map", "pages", "heads", "layout"]) {
            await go(page, view === "map" ? "#map" : `#${view}/${last.layer}/${last.step}`);
            for (const theme of ["light", "dark"]) {
                assert.deepEqual(await accessibilityProblems(page), [], `${view}, ${theme}`);
                if (theme === "light") await screenshot(page, `${name}-${view}`);
                await click(page, "#theme");
            }
        }
        await go(page, "#map");
        await use(page);
    });
    assert.deepEqual(problems, []);
}

// Clicks the cell of a map on canvas.
async function clickCell(page, map, column, row) {
    const canvas = page.locator(`canvas[data-map="${map}"]`);
    const {width, height, left, w} = await canvas.evaluate((c) => ({
        width: Number(c.dataset.cellWidth), height: Number(c.dataset.cellHeight), left: Number(c.dataset.left),
        w: c.getBoundingClientRect().width / parseFloat(c.style.width)
    }));
    await canvas.click({position: {x: (left + (column + 0.5) * width) * w, y: (row + 0.5) * height * w}});
}

const longPrompt = readFileSync(join(root, "models/eval.txt"), "utf8").slice(0, 4200), prompt = longPrompt.slice(0, 1200);
writeFileSync(at("prompt.txt"), prompt);

// MIXED_KV_PAGE_PART: "short", "models" or "steps" alone; else all of them. MIXED_KV_PAGE_STEPS: of the long run.
const leftOut = (part) => ![undefined, part].includes(process.env.MIXED_KV_PAGE_PART);
const steps = Number(process.env.MIXED_KV_PAGE_STEPS ?? 450);

describe("a page", {skip: leftOut("short")}, () => {
    test("the bundled model, mixed, against its F16 run: clicks, keys, themes, print, saving", async () => {
        const mixed = record(bundled, at("mixed.gguf"), "-f", at("prompt.txt"), "-n", 4, "-ub", 64, "--mixed-kv-cache");
        const exact = record(bundled, at("exact.gguf"), "-f", at("prompt.txt"), "-n", 4, "-ub", 64);
        const made = read(mixed, "--against", exact);
        assert.ok(made.bytes < 5e6);
        const last = made.json.records.at(-1);
        assert.ok(last.quantization.k.relative > 0.001 && last.quantization.k.relative < 0.3);
        await tour("bundled-mixed", made, async (page) => {
            // A cell of the map leads to its record.
            await clickCell(page, "records", 2, 1);
            await page.waitForFunction(() => document.body.dataset.drawn === "pages/1/2");
            // So do the tabs, keeping the record, and the arrow keys.
            await clickTo(page, page.locator("[data-tab=heads]"), "heads/1/2");
            await page.keyboard.press("ArrowRight");
            await page.waitForFunction(() => document.body.dataset.drawn === "heads/1/3");
            await page.keyboard.press("ArrowUp");
            await page.waitForFunction(() => document.body.dataset.drawn === "heads/0/3");
            await page.keyboard.press("4");
            await page.waitForFunction(() => document.body.dataset.drawn === "layout/0/3");
            await page.goBack();
            await page.waitForFunction(() => document.body.dataset.drawn === "heads/0/3");
            await clickTo(page, page.locator("[data-choice=log]"), "heads/0/3/0/0/log");
            // Weights of a head add up to 1 over its pages.
            await go(page, `#heads/${last.layer}/${last.step}`);
            const shares = [...(await page.textContent("#kind-shares")).matchAll(/([\d.e-]+) %/g)].map((m) => Number(m[1]));
            assert.ok(Math.abs(shares.reduce((a, b) => a + b, 0) - 100) < 0.5, shares.join(" "));
            // Before and after decoding are there, as originals are known.
            for (const side of ["k", "v"])
                assert.ok(await page.$(`canvas[data-map=${side}-difference]`));
            // The map by keyboard.
            await go(page, "#map/cold");
            await page.focus("canvas[data-map=records]");
            for (const key of ["ArrowRight", "ArrowRight", "ArrowDown", "Enter"]) await page.keyboard.press(key);
            await page.waitForFunction(() => document.body.dataset.drawn === "pages/1/1");
            // What is saved is the reader's JSON, less the lists of tensor names.
            const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
            const saved = JSON.parse(readFileSync(await download.path(), "utf8"));
            for (const r of made.json.records) delete r.tensors;
            assert.deepEqual(saved, made.json);
            // Dark and back.
            const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
            const light = await paper();
            await click(page, "#theme");
            assert.notEqual(await paper(), light);
            await go(page, "#map");
            await screenshot(page, "bundled-mixed-map-dark");
        });
        await withPage(made.page, async (page) => {
            await screenshot(page, "bundled-mixed-print");
            assert.equal(await page.isVisible("nav"), false);
        }, {print: true});
    });
});

describe("pages of traces", {skip: leftOut("models")}, () => {
    test("26 steps of 5 layers at 1280 rows, with rows as they were written: 5 MB, 2 seconds", async () => {
        const trace = record(bundled, at("large.gguf"), "-p", longPrompt, "-n", 8, "-ub", 64, "-c", 2048, "--mixed-kv-cache", "--keep-originals");
        const made = read(trace);
        assert.equal(made.json.steps, 26);
        assert.equal(made.json.layers, 5);
        assert.equal(made.json.records.at(-1).n_kv, 1280);
        assert.ok(made.bytes <= 5e6, `${made.bytes} bytes`);
        await withPage(made.page, async (page, {seconds}) => assert.ok(seconds > 0 && seconds < 2, `opened in ${seconds} s`));
        await tour("large", made, async (page) => {
            assert.equal(await text(page, "details"), "130 of 130");
            // The table by layer is that of the JSON.
            const rows = page.locator("#quantization tbody tr");
            assert.equal(await rows.count(), 5);
            for (const [i, layer] of made.json.quantization.entries()) {
                const cells = await rows.nth(i).locator("td").allTextContents();
                for (const [column, figure] of [[2, layer.k.rms], [6, layer.v.rms]]) assert.ok(Math.abs(Number(cells[column]) / figure - 1) < 0.01, `${cells} for ${figure}`);
            }
            // Each page's error lies about the layer's.
            await go(page, "#pages/2/25");
            const errors = (await page.locator("[data-side=k] tbody tr td:nth-child(5)").allTextContents()).filter((e) => e !== "–").map(parseFloat);
            assert.ok(errors.length >= 17, `${errors}`);
            const mean = errors.reduce((a, b) => a + b, 0) / errors.length / 100;
            assert.ok(Math.abs(mean / made.json.quantization[2].k.relative - 1) < 0.2, `${mean}`);
            // A head is chosen where it is seen.
            await go(page, "#heads/2/25");
            await clickCell(page, "heads-by-pages", 3, 2);
            await page.waitForFunction(() => document.body.dataset.drawn === "heads/2/25/2/0/linear");
        });
    });

    test("the bundled model, its own cache", async () => {
        await tour("bundled-standard", read(record(bundled, at("standard.gguf"), "-f", at("prompt.txt"), "-n", 2, "-ub", 128)));
    });

    for (const [arch, what] of [["gemma2", "sliding window with soft-cap"], ["deepseek2", "MLA"], ["gpt-oss", "sinks"], ["mpt", "ALiBi"]]) {
        test(what, async () => {
            const trace = record(randomModel(arch), at(`${arch}-trace.gguf`), "-p", words(150), "-n", 3, "-ub", 32, "--mixed-kv-cache");
            const made = read(trace);
            assert.equal(made.json.pass, true);
            await tour(arch, made, async (page) => {
                const {layer, step} = made.json.records.at(-1);
                if (arch === "gpt-oss") {
                    await go(page, `#heads/${layer}/${step}`);
                    assert.match(await page.textContent("#view"), /learned sink takes \S+ %/);
                }
                if (arch === "deepseek2") {
                    await go(page, `#pages/${layer}/${step}`);
                    assert.match(await page.textContent("#view"), /V is a view of K/);
                }
            });
        });
    }

    test("several streams", async () => {
        tool("make-test-trace", "streams", "-o", at("streams.gguf"));
        const made = read(at("streams.gguf"));
        assert.equal(made.json.pass, true);
        await tour("streams", made, async (page) => {
            await go(page, "#pages/0/2");
            await clickTo(page, page.locator("[aria-label=stream] [data-choice='1']"), "pages/0/2/1");
            assert.equal(await page.locator("[data-side=k] tbody tr").count(), 2);
            await screenshot(page, "streams-second");
        });
    });

});

describe("a long run", {skip: leftOut("steps")}, () => {
    test(`${steps} steps`, async () => {
        const trace = record(randomModel("llama"), at("steps.gguf"), "-p", "", "-n", steps, "-c", 2048, "--layer", 1, "--mixed-kv-cache", "--compact");
        const made = read(trace, "--reference", "double");
        assert.equal(made.json.steps, steps);
        assert.ok(made.bytes < 5.1e6);
        await tour(`steps-${steps}`, made, async (page) => {
            // Several steps a column; a click leads to one of them.
            const per = Math.ceil(steps / 400);
            await clickCell(page, "records", 100, 0);
            await page.waitForFunction(() => document.body.dataset.drawn.startsWith("pages/1/"));
            const step = Number((await page.getAttribute("body", "data-drawn")).split("/")[2]);
            assert.ok(step >= 100 * per && step < 101 * per, `${step}`);
            // Records without details say so, and name some that have them.
            const shown = Number((await detailsShown(page)).split(" ")[0]);
            assert.ok(shown > 100 && shown < steps);
            for (let s = 1; s < steps; ++s) {
                await go(page, `#pages/1/${s}`);
                if (!await page.$("#no-detail")) continue;
                assert.ok(await page.locator("#no-detail a").count() > 0);
                break;
            }
        });
    });
});

async function detailsShown(page) {
    await go(page, "#map");
    return text(page, "details");
}

describe("a broken layout", {skip: leftOut("short")}, () => {
    test("is found in three clicks", async () => {
        const trace = record(randomModel("llama"), at("good.gguf"), "-p", words(120), "-n", 6, "-ub", 32, "--mixed-kv-cache");
        tool("make-test-trace", "misread", "-i", trace, "-o", at("broken.gguf"), "--layer", 1, "--step", 7);
        const made = read(at("broken.gguf"));
        assert.equal(made.json.pass, false);
        assert.deepEqual(made.json.records.filter((r) => !r.pass).map((r) => [r.layer, r.step]), [[1, 7]]);
        await tour("broken", made, async (page) => {
            await screenshot(page, "broken-1-map");
            await clickCell(page, "records", 7, 1);  // 1: the red cell
            await page.waitForFunction(() => document.body.dataset.drawn === "pages/1/7");
            await screenshot(page, "broken-2-pages");
            await clickTo(page, page.locator("[data-tab=layout]"), "layout/1/7");  // 2: how its tensors lie
            assert.match(await page.textContent("#layout-verdict"), /is what one gets with k taken for contiguous/);
            const row = page.locator("#misreadings tr[data-what=k]");
            assert.ok((await row.getAttribute("class")).includes("bad"));
            // The source under suspicion is shown without being asked for.
            assert.ok(await page.$("[data-source=k]"));
            assert.ok(Number(await page.getAttribute("#memory", "data-wrong")) > 0);
            await screenshot(page, "broken-3-layout");
            await page.locator("[aria-label=show] [data-choice='0']").click();  // 3: beside what is right
            assert.match(await page.textContent("#misread-figure"), /Beside what is right/);
            // Where an element is, and where a contiguous reader looks.
            await page.fill("[data-index='1']", "3");
            await page.fill("[data-index='2']", "1");
            const bytes = async (id) => Number((await page.textContent(id)).split("=").at(-1));
            assert.notEqual(await bytes("#right-byte"), await bytes("#naive-byte"));
        });
    });

    test("is not seen where nothing is broken", async () => {
        const made = read(at("good.gguf"));
        const problems = await withPage(made.page, async (page) => {
            await go(page, "#layout/1/7");
            assert.match(await page.textContent("#layout-verdict"), /The recorded output is right/);
            // What the mistake would cost.
            const cost = await page.locator("#misreadings tr[data-what=k] td").nth(1).textContent();
            assert.ok(parseFloat(cost) > 1, cost);
        });
        assert.deepEqual(problems, []);
    });
});

describe("a hostile trace", {skip: leftOut("short")}, () => {
    test("makes no script run, and numbers that are none break nothing", async () => {
        const trace = at("hostile.gguf");
        tool("make-test-trace", "hostile", "-o", trace);
        const made = read(trace);
        const markup = readFileSync(made.page, "utf8");
        assert.ok(!markup.includes("onerror="), "text of the trace is in the markup");
        await tour("hostile", made, async (page) => {
            for (const hash of ["#map", "#map/cold", "#map/<b>", ...["0/0", "0/1", "0/2", "1/3"].flatMap((at) => [`#pages/${at}`, `#heads/${at}/9/9/log`, `#layout/${at}/k`, `#layout/${at}/v`, `#layout/${at}/q`]),
                "#nowhere/<img src=x onerror=window.hacked=5>", "#%E0%A4%A", "#layout/NaN/Infinity/__proto__"]) {
                await go(page, hash);
                assert.equal(await page.$("#problem"), null, `${hash} cannot be shown`);
            }
            assert.equal(await page.evaluate(() => window.hacked), undefined);
            assert.equal(await page.locator("#view img, #view script, #view svg[onload]").count(), 0);
            await go(page, "#map");
            assert.match(await page.textContent("#view"), /<\/script><script>window\.hacked=1/);
        });
    });
});
