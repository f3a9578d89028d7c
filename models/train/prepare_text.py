"""Turns the raw books into plain ASCII training text and held-out text.

Writes WORK/train.txt (one paragraph per line), WORK/names.txt (the keys of the recall facts) and,
where --eval-out says so, the held-out text that training never sees.
"""
import argparse
import pathlib
import re

# Held out whole: no sentence of these is in the training text.
HELD_OUT_BIBLE_BOOKS = {"Jas", "1Pet", "2Pet", "1Jn", "2Jn", "3Jn", "Jude"}
HELD_OUT_CHAPTERS = range(124, 136)
HELD_OUT_ADDRESSES = {"1864_abraham_lincoln_r", "1801_thomas_jefferson_dr", "1890_benjamin_harrison_r"}
LAST_ADDRESS_YEAR = 1945
# The second model's text: the addresses after that year.
HELD_OUT_LATER_ADDRESSES = {"1961", "1978", "1996"}     # years

# The third model's text: five novels; the sixth is held out, as far as is needed for a test.
HELD_OUT_NOVEL, HELD_OUT_CHARACTERS = "Persuasion", 300_000

N_NAMES = 128
NAME_LENGTHS = range(4, 8)

ASCII = {"\u2014": "--", "\u2013": "-", "\u2011": "-", "\u2019": "'", "\u2018": "'",
         "\u201c": '"', "\u201d": '"', "\u00b0": " degrees", "\u00e9": "e", "\u00e6": "ae"}


def to_ascii(text):
    """Maps typographic characters to ASCII and drops the few others."""
    for wide, plain in ASCII.items():
        text = text.replace(wide, plain)
    return text.encode("ascii", "ignore").decode("ascii")


def paragraphs(text):
    """Paragraphs of a text, each on one line with single spaces."""
    found = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", to_ascii(text)))
    return [part for part in found if part]


def read_bible(path):
    """(train, held out) paragraphs, one for each chapter."""
    chapters = {}
    for line in path.read_text().splitlines():
        match = re.match(r"(\d?[A-Za-z]+)(\d+):\d+ (.*)", line)
        if match:
            chapters.setdefault((match[1], int(match[2])), []).append(match[3].strip())
    train, held_out = [], []
    for (book, _), verses in chapters.items():
        (held_out if book in HELD_OUT_BIBLE_BOOKS else train).append(" ".join(verses))
    return train, held_out


def read_moby_dick(path):
    train, held_out = [], []
    for number, chapter in enumerate(path.read_text().split("\f"), start=1):
        (held_out if number in HELD_OUT_CHAPTERS else train).extend(paragraphs(chapter))
    return train, held_out


def read_addresses(path):
    train, held_out = [], []
    for address in path.read_text().split("\f"):
        title, _, body = address.strip().partition("\n")
        if not title or int(title[:4]) > LAST_ADDRESS_YEAR:
            continue
        (held_out if title in HELD_OUT_ADDRESSES else train).extend(paragraphs(body))
    return train, held_out


def read_later_addresses(path):
    train, held_out = [], []
    for address in path.read_text().split("\f"):
        title, _, body = address.strip().partition("\n")
        if not title or int(title[:4]) <= LAST_ADDRESS_YEAR:
            continue
        (held_out if title[:4] in HELD_OUT_LATER_ADDRESSES else train).extend(paragraphs(body))
    return train, held_out


def read_novels(path):
    train, held_out = [], []
    for novel in path.read_text().split("\f"):
        title = novel.strip().partition("\n")[0]
        (held_out if title == HELD_OUT_NOVEL else train).extend(paragraphs(novel))
    while sum(len(part) + 1 for part in held_out) > HELD_OUT_CHARACTERS:
        held_out.pop()
    return train, held_out


def choose_names(path, texts):
    """First names that occur in no text, so that a name belongs to recall facts only."""
    used = {word.lower() for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    names = sorted({name for name in path.read_text().split()
                    if len(name) in NAME_LENGTHS and name.isalpha() and name.lower() not in used})
    step = len(names) / N_NAMES
    return [names[int(i * step)] for i in range(N_NAMES)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--eval-out", type=pathlib.Path, required=True)
    parser.add_argument("--text", choices=("books", "later-addresses", "novels"), default="books")
    args = parser.parse_args()
    raw = args.work / "raw"

    if args.text == "books":
        sources = {"bible": read_bible(raw / "kjv.txt"), "moby dick": read_moby_dick(raw / "moby_dick.txt"),
                   "addresses": read_addresses(raw / "sotu.txt")}
    elif args.text == "novels":
        sources = {"novels": read_novels(raw / "novels.txt")}
    else:
        sources = {"later addresses": read_later_addresses(raw / "sotu.txt")}
    for name, (train, held_out) in sources.items():
        print(f"{name}: {sum(map(len, train))} characters to train on, {sum(map(len, held_out))} held out")
    train = [part for source, _ in sources.values() for part in source]
    held_out = [part for _, source in sources.values() for part in source]
    (args.work / "train.txt").write_text("\n".join(train) + "\n")
    args.eval_out.write_text("\n".join(held_out) + "\n")
    names = choose_names(raw / "first_names.txt", train + held_out)
    (args.work / "names.txt").write_text("\n".join(names) + "\n")
    print(f"{len(names)} names, such as {', '.join(names[:8])}")


if __name__ == "__main__":
    main()
