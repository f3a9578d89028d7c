// What makes a page hard to use without good eyes or a mouse, as a list of complaints; the empty list is right.
export async function accessibilityProblems(page) {
    return page.evaluate(() => {
        const problems = [];
        const parse = (text) => {
            const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
            return {r, g, b, a};
        };
        const luminance = ({r, g, b}) => {
            const [x, y, z] = [r, g, b].map((c) => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
            return 0.2126 * x + 0.7152 * y + 0.0722 * z;
        };
        const contrast = (a, b) => {
            const [x, y] = [luminance(a), luminance(b)];
            return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
        };
        const background = (element) => {
            for (let e = element; e; e = e.parentElement) {
                const colour = parse(getComputedStyle(e).backgroundColor);
                if (colour.a === 1) return colour;
            }
            return {r: 255, g: 255, b: 255};
        };

        // Text: 4.5 to 1, large text 3 to 1 (WCAG 2.1, AA).
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        const seen = new Set();
        while (walker.nextNode()) {
            const element = walker.currentNode.parentElement;
            if (!walker.currentNode.textContent.trim() || seen.has(element) || element.closest("script, noscript, .live, :disabled")) continue;
            seen.add(element);
            if (element.getClientRects().length === 0) continue;
            const style = getComputedStyle(element), size = parseFloat(style.fontSize);
            const colour = parse(element instanceof SVGElement ? style.fill : style.color), paper = background(element);
            const needed = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5, found = contrast(colour, paper);
            if (found < needed) problems.push(`contrast ${found.toFixed(2)} of "${element.textContent.trim().slice(0, 40)}" (${style.color} on ${JSON.stringify(paper)})`);
        }
        // Lines and bars: 3 to 1 with the paper.
        const root = getComputedStyle(document.documentElement), probe = document.createElement("span");
        document.body.append(probe);
        const named = (name) => {
            probe.style.color = root.getPropertyValue(`--${name}`);
            return parse(getComputedStyle(probe).color);
        };
        for (const name of ["chart", "chart-2", "chart-3", "chart-4", "chart-5", "bad", "good", "accent", "mark"]) {
            const found = contrast(named(name), named("paper"));
            if (found < 3) problems.push(`contrast ${found.toFixed(2)} of the colour ${name}`);
        }
        probe.remove();

        // Everything that is operated or drawn has a name, and nothing is reached by mouse alone.
        const nameOf = (e) => (e.getAttribute("aria-label") ?? e.closest("label")?.textContent ?? e.textContent ?? "").trim();
        for (const e of document.querySelectorAll("button, select, input, a, canvas, svg")) {
            if (!nameOf(e)) problems.push(`no name: ${e.outerHTML.slice(0, 120)}`);
        }
        for (const e of document.querySelectorAll("canvas, svg")) {
            if (e.getAttribute("role") !== "img" && e.getAttribute("role") !== "application") problems.push(`no role: ${e.outerHTML.slice(0, 120)}`);
        }
        for (const e of document.querySelectorAll("tr.pick")) {
            if (!e.querySelector("a, button")) problems.push(`a row that only a mouse can pick: ${e.textContent.slice(0, 60)}`);
        }
        for (const e of document.querySelectorAll("th")) {
            if (!e.getAttribute("scope")) problems.push(`a heading without a scope: ${e.textContent}`);
        }
        if (document.documentElement.lang !== "en" || !document.title) problems.push("no language, or no title");
        if (document.querySelectorAll("h1").length !== 1 || document.querySelectorAll("main").length !== 1) problems.push("not one heading and one main part");
        let level = 1;
        for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
            const next = Number(heading.tagName[1]);
            if (next > level + 1) problems.push(`a heading of level ${next} below level ${level}: ${heading.textContent}`);
            level = next;
        }
        return problems;
    });
}
