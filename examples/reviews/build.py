"""Splits the hand-written reviews into train.jsonl and eval.jsonl, or checks the two files that are here.

    python build.py PART1 PART2 PART3 PART4     # food and film, electronics and software, travel and services, things
    python build.py --check                     # the committed files; exit status 1 and a list when a rule is broken

A part is a JSON Lines file with `text`, `label` and `kind`. One fifth of each (part, label) goes to eval.jsonl, with the
kinds in proportion. Who goes where, and the order of the rows, follow from SHA-256 of the seed and the text, so the
result depends on no library and no version of Python.
"""

import collections
import hashlib
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
SEED = 7
EVAL_SHARE = 0.2
DOMAINS = ["food-and-film", "electronics-and-software", "travel-books-and-services", "things"]
LABELS = ["negative", "positive"]
KINDS = ["plain", "negation", "contrast", "mixed", "irony"]
WORDS = range(6, 51)


def read(path, **extra):
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) | extra for line in lines if line.strip()]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def rank(row):
    return hashlib.sha256(f"{SEED}:{row['text']}".encode()).hexdigest()


def normalised(text):
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def sentences(text):
    """The text itself and each of its sentences, normalised."""
    parts = re.split(r"(?<=[.!?])[\"')]*\s+", text)
    return {normalised(part) for part in [text, *parts]} - {""}


def broken_rules(rows):
    """What is wrong with the rows, a line for each; empty when nothing is."""
    owner = {}
    for number, row in enumerate(rows):
        text = row["text"]
        if row["label"] not in LABELS or row["kind"] not in KINDS or row["domain"] not in DOMAINS:
            yield f"unknown label, kind or domain: {row}"
        if len(text.split()) not in WORDS or text != text.strip() or not text.isascii():
            yield f"not {WORDS.start} to {WORDS.stop - 1} words of plain ASCII: {text}"
        for sentence in sentences(text):
            if owner.setdefault(sentence, number) != number:
                yield f"sentence {sentence!r} in two rows: {rows[owner[sentence]]['text']!r} and {text!r}"


def uneven(train, held_out):
    """Where the two splits differ in their make-up; empty when they agree."""
    for name, rows in (("train", train), ("eval", held_out)):
        labels = collections.Counter(row["label"] for row in rows)
        if labels[LABELS[0]] != labels[LABELS[1]]:
            yield f"{name} is not balanced: {dict(labels)}"
    for field, values in (("kind", KINDS), ("domain", DOMAINS)):
        for value in values:
            here, there = (sum(row[field] == value for row in rows) / len(rows) for rows in (train, held_out))
            if abs(here - there) > 0.01:
                yield f"{field} {value}: {here:.1%} of train, {there:.1%} of eval"


def split(rows):
    """Holds out one fifth of the rows of one part and label, the kinds in proportion (largest remainders)."""
    groups = [sorted((row for row in rows if row["kind"] == kind), key=rank) for kind in KINDS]
    shares = [len(group) * EVAL_SHARE for group in groups]
    takes = [int(share) for share in shares]
    for index in sorted(range(len(KINDS)), key=lambda i: takes[i] - shares[i])[: round(sum(shares)) - sum(takes)]:
        takes[index] += 1
    train = [row for group, take in zip(groups, takes) for row in group[take:]]
    return train, [row for group, take in zip(groups, takes) for row in group[:take]]


def build(parts):
    train, held_out = [], []
    for path, domain in zip(parts, DOMAINS, strict=True):
        rows = read(path, domain=domain)
        for label in LABELS:
            here, there = split([row for row in rows if row["label"] == label])
            train += here
            held_out += there
    return sorted(train, key=rank), sorted(held_out, key=rank)


def main():
    checking = sys.argv[1:] == ["--check"]
    if not checking and len(sys.argv) != 1 + len(DOMAINS):
        sys.exit(__doc__)
    files = [HERE / "train.jsonl", HERE / "eval.jsonl"]
    train, held_out = map(read, files) if checking else build(sys.argv[1:])
    wrong = [*broken_rules(train + held_out), *uneven(train, held_out)]
    if wrong:
        sys.exit("\n".join(wrong))
    if not checking:
        write(files[0], train)
        write(files[1], held_out)
    print(f"{len(train)} training rows, {len(held_out)} evaluation rows, no rule broken")


if __name__ == "__main__":
    main()
