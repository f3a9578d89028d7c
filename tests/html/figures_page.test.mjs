// mixed-kv-eval --html and mixed-kv-bench --html in a browser: the figures are those of the JSON.
import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {join} from "node:path";
import {test} from "node:test";
import {accessibilityProblems} from "./accessibility.mjs";
import {clickTo, go, screenshot, withPage} from "./browser.mjs";
import {at, bundled, randomModel, root, tool} from "./tools.mjs";

const run = (name, page, ...args) => JSON.parse(tool(name, ...args, "--json", "--html", page));

async function saved(page) {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
    return JSON.parse(readFileSync(await download.path(), "utf8"));
}

test("mixed-kv-eval", async () => {
    const file = at("eval.html");
    const json = run("mixed-kv-eval", file, "-m", bundled, "-f", join(root, "models/eval.txt"), "-c", 256, "--ubatch", 64,
        "--chunks", 1, "-t", 1, "--configs", "host:f16,host:q8_0,host:q4_0,mixed:balanced", "--baseline", "host:q4_0");
    const problems = await withPage(file, async (page) => {
        const rows = page.locator("#figures tbody tr");
        assert.equal(await rows.count(), json.configs.length);
        for (const [i, config] of json.configs.entries()) {
            assert.equal(await rows.nth(i).getAttribute("data-config"), config.name);
            assert.equal(Number(await rows.nth(i).getAttribute("data-kld-mean")), config.kld_mean);
        }
        const chart = await page.textContent("[data-chart=kld]");
        for (const config of json.configs.filter((c) => c.kld_mean > 0)) assert.ok(chart.includes(config.name), config.name);
        await screenshot(page, "eval");
        assert.deepEqual(await accessibilityProblems(page), []);
        await clickTo(page, page.locator("[data-choice=kld_p999]"), "quality/kld_p999");
        assert.match(await page.textContent("#view"), /KLD \(99\.9 %\)/);
        assert.deepEqual(await saved(page), json);
    });
    assert.deepEqual(problems, []);
});

test("mixed-kv-bench attention", async (t) => {
    const file = at("bench.html");
    let json;
    try {
        json = run("mixed-kv-bench", file, "attention", "--n-head", 4, "--n-head-kv", 2, "--head-dim", 64, "--n-kv", "128,256", "--k", "q4,q8", "--v", "q4,q8",
            "--host", "f16", "--threads", 1, "--rotate-mib", 8);
    } catch (error) {
        // Other programs took the memory's time while it was measured.
        if (/times as fast as memory/.test(error.stderr)) return t.skip("this machine is too busy for a benchmark");
        throw error;
    }
    const problems = await withPage(file, async (page) => {
        assert.equal(await page.locator("#figures tbody tr").count(), json.cases.length);
        assert.equal(JSON.parse(await page.getAttribute("[data-figure=bandwidth]", "data-raw")), json.read_bandwidth);
        assert.ok(await page.$("[data-chart=speed] path") && await page.$("[data-chart=roofline] path"));
        await screenshot(page, "bench-attention");
        assert.deepEqual(await accessibilityProblems(page), []);
        assert.deepEqual(await saved(page), json);
        await go(page, "#nowhere");
        assert.equal(await page.$("#problem"), null);
    }, {theme: "dark"});
    assert.deepEqual(problems, []);
});

test("mixed-kv-bench prompt and model", async () => {
    const model = randomModel("llama");
    for (const [mode, ...args] of [["prompt", "--n-prompt", 192, "--n-ubatch", 64, "--n-gen", 2, "--runs", 1], ["model", "--depths", "64,128", "--rotate-mib", 8]]) {
        const file = at(`${mode}.html`);
        const json = run("mixed-kv-bench", file, mode, "-m", model, ...args, "--host", "f16", "--threads", 1);
        const problems = await withPage(file, async (page) => {
            assert.equal(await page.locator("#figures tbody tr").count(), (json.ubatches ?? json.cases).length);
            assert.ok(await page.$("[data-chart=speed] path"));
            await screenshot(page, `bench-${mode}`);
            assert.deepEqual(await accessibilityProblems(page), []);
            assert.deepEqual(await saved(page), json);
        });
        assert.deepEqual(problems, [], mode);
    }
});
