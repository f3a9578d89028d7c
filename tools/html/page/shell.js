// The frame of a report: heading, views under tabs, the address after '#' as the place one is at, light and dark.

// What a tool's scripts fill in:
//   title, subtitle() -> text, badge() -> element or null
//   views: [{name, title, draw(place) -> element or promise of one}], the first is where one begins
//   place: the view's place beyond its name, [key, ...]; controls(place) -> elements beside the tabs
//   keys(event, place) -> true if it was for the report
const report = {title: "Report", views: [], subtitle: () => "", badge: () => null, controls: () => [], keys: () => false};

function placeOfAddress() {
    let address = location.hash.slice(1);
    try {
        address = decodeURIComponent(address);
    } catch {
        // taken as it stands
    }
    const [view, ...rest] = address.split("/");
    const known = report.views.some((v) => v.name === view);
    return {view: known ? view : report.views[0].name, rest: known ? rest : []};
}

function go(view, ...rest) {
    const hash = `#${[view, ...rest].join("/")}`;
    if (location.hash === hash) drawView(); else location.hash = hash;
}

let drawing = 0;
async function drawView() {
    const place = placeOfAddress(), turn = ++drawing;
    hideTip();
    const view = report.views.find((v) => v.name === place.view);
    redraws = [];
    const content = await view.draw(place);
    if (turn !== drawing) return;  // somebody went elsewhere meanwhile
    document.getElementById("view").replaceChildren(content);
    document.getElementById("tabs").replaceChildren(
        ...report.views.map((v) => el("a", {
            href: `#${[v.name, ...(v.keepsPlace ? place.rest : [])].join("/")}`, "aria-current": v === view ? "page" : null, "data-tab": v.name
        }, v.title)),
        el("span", {class: "place"}, report.controls(place)));
    document.body.dataset.drawn = `${place.view}/${place.rest.join("/")}`;
}

function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    for (const draw of redraws) draw();
}

function frame() {
    const badge = report.badge();
    document.body.append(el("div", {class: "page"},
        el("header", {},
            el("h1", {}, report.title), badge, el("span", {class: "subtitle"}, report.subtitle()),
            el("span", {class: "row controls"}, report.actions?.() ?? null,
                el("button", {
                    type: "button", id: "theme", click: () => {
                        setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
                        drawView();
                    }
                }, "light / dark"))),
        el("nav", {id: "tabs", "aria-label": "Views"}),
        el("main", {id: "view"})), tip);
}

function complain(error) {
    document.body.append(el("p", {class: "alarm", role: "alert", id: "problem"},
        "This report cannot be shown: ", String(error?.message ?? error)));
    throw error;
}

async function startReport() {
    try {
        setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
        await report.start();
        document.title = report.title;
        frame();
        addEventListener("hashchange", () => drawView().catch(complain));
        addEventListener("keydown", (event) => {
            if (event.target.closest?.("input, select, textarea, [role=application]") || event.ctrlKey || event.metaKey || event.altKey) return;
            if (report.keys(event, placeOfAddress())) event.preventDefault();
        });
        await drawView();
    } catch (error) {
        complain(error);
    }
}
