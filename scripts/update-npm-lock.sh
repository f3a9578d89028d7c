#!/usr/bin/env bash
# Renews package-lock.json after a change of package.json. Needed only to move the llama.cpp pin.
#
# The lock carries versions and checksums but no download addresses, so that every registry mirror serves it.
# A mirror may lack packages for platforms that we never install (--omit=optional); npm then leaves them out of
# the lock, and `npm ci` elsewhere calls the lock incomplete. They are added by name and version here.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -f package-lock.json
npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --no-audit --no-fund
node - <<'JS'
const fs = require("fs");
const lock = JSON.parse(fs.readFileSync("package-lock.json", "utf8"));
for (const entry of Object.values(lock.packages)) {
    delete entry.resolved;
    delete entry.funding;
}
for (const entry of Object.values(lock.packages)) {
    for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
        const path = `node_modules/${name}`;
        if (lock.packages[path] || !/^\d+\.\d+\.\d+$/.test(version)) continue;
        const [, os, cpu] = name.match(/(linux|mac|win|darwin|win32)-([a-z0-9]+)/) ?? [];
        lock.packages[path] = {
            version,
            cpu: [cpu ?? "unknown"],
            optional: true,
            os: [{ mac: "darwin", win: "win32" }[os] ?? os ?? "unknown"],
        };
    }
}
const [root, ...rest] = Object.entries(lock.packages);
lock.packages = Object.fromEntries([root, ...rest.sort(([a], [b]) => (a < b ? -1 : 1))]);
fs.writeFileSync("package-lock.json", JSON.stringify(lock, null, 2) + "\n");
JS
echo "package-lock.json renewed; check it with: npm ci --omit=optional --ignore-scripts"
