"""Writes train.jsonl and eval.jsonl: requests to a home assistant, each answered with one command line.

    python build.py             # writes both files beside this one
    python build.py --check     # the files are what this script writes and keep its rules; else exit status 1 and a list

The words are in words.py and phrases.py. A conversation is drawn as a state (a tool and its slots), then put into words
by a phrase. An answer belongs to train or to eval by a hash of its text, so no answer that evaluation asks for is in train.
"""

import collections
import hashlib
import json
import pathlib
import random
import re
import sys

from phrases import ANSWERS, ASKS, COMMANDS, FIXES, MISTAKES, NEVER_MIND, PHRASES, SHARES, TOOLS, VAGUE, WRAPPERS
from words import COUNTED, DAYS, HOURS, HOURS_OF_DAY, MEASURES, NUMBERS, WORDS

HERE = pathlib.Path(__file__).resolve().parent
SEED = 42
SYSTEM = "Answer with one command."
TRAIN = 1500
# What is new in an evaluation row: only the combination of slots, the phrase too, or the words in the slots too.
EVAL = {"combination": 120, "phrase": 40, "word": 40}
TURNS = [1] * 13 + [2] * 5 + [3] * 2


def held_out(line):
    """Whether an answer is asked for in evaluation only; one in eight is."""
    return hashlib.sha256(f"{SEED}:{line}".encode()).digest()[0] < 32


class Draw:
    """Draws slots and phrases for rows of one kind: `train` or a key of EVAL."""

    def __init__(self, rng, kind):
        self.rng = rng
        self.kind = kind
        self.tool = None

    def phrase(self, table):
        """A phrase of a table; the last ones of a table, one in five, are for evaluation only."""
        known = len(table) - max(1, len(table) // 5) if len(table) > 2 else len(table)
        return self.rng.choice(table[known:] or table if self.kind == "phrase" else table[:known])

    def word(self, name):
        known, new = WORDS[name]
        return self.rng.choice(new if self.kind == "word" else known)

    def slot(self, name):
        """The fields that phrases use for a slot, and under the slot's own name in capitals what the answer says."""
        drawn = {
            "when": self.when,
            "duration": self.duration,
            "level": self.level,
            "degrees": self.degrees,
            "items": self.items,
            "day": self.day,
            "event": self.event,
        }
        if name in drawn:
            return drawn[name]()
        word = self.word(name)
        return {name: word, name.upper(): word}

    def day(self):
        day = self.rng.choice(["today", "tomorrow", *DAYS])
        return {"day": f"on {day}" if day in DAYS else day, "DAY": day}

    def when(self):
        """A day and a time of day, in one of six ways to say them."""
        day = self.rng.choice(["today", "tomorrow", "tomorrow", *DAYS])
        on_day = f"on {day}" if day in DAYS else day
        hour = self.rng.choice(HOURS_OF_DAY.get(self.tool, range(7, 23)))
        minute = self.rng.choice([0, 0, 0, 15, 30, 30, 45])
        style = self.rng.randrange(6)
        if hour == 12 or (hour == 11 and minute == 45):
            hour, minute, style = 12, 0, 6
        if style == 0:
            minute = self.rng.choice([minute, self.rng.randrange(0, 60, 5)])
            times = [f"at {hour:02}:{minute:02}"]
        elif style == 1:
            clock = f"{(hour - 1) % 12 + 1}" + (f":{minute:02}" if minute else "")
            times = [f"at {clock} {'am' if hour < 12 else 'pm'}"]
        elif style == 6:
            times = ["at noon"]
        else:
            times = self.spoken(hour, minute, day)
        value = {"WHEN": f"{day} {hour:02}:{minute:02}"}
        if len(times) == 2:  # the part of the day goes with the day: "tomorrow evening", "at six"
            return value | {"when": " ".join(times), "on": times[0].removeprefix("on ") + " " + times[1]}
        orders = [f"{on_day} {times[0]}", f"{times[0]} {on_day}"]
        return value | {"when": self.rng.choice(orders), "on": f"{day} {times[0]}"}

    def spoken(self, hour, minute, day):
        said = hour + (minute > 30)
        part = "morning" if said < 12 else "afternoon" if said < 18 else "evening"
        name = HOURS[(said - 1) % 12]
        ways = {
            0: [name, f"{name} o'clock"],
            15: [f"quarter past {name}"],
            30: [f"half past {name}"],
            45: [f"quarter to {name}"],
        }
        clock = "at " + self.rng.choice(ways[minute])
        if self.rng.random() < 0.5:
            return [f"{clock} in the {part}"]
        if day == "today":
            return ["tonight" if hour >= 20 else f"this {part}", clock]
        return [f"on {day} {part}" if day in DAYS else f"{day} {part}", clock]

    def number(self, low, high):
        value = self.rng.randrange(low, high + 1)
        return (NUMBERS[value] if value in NUMBERS and self.rng.random() < 0.5 else str(value)), value

    def duration(self):
        fixed = {
            "half an hour": 30,
            "a quarter of an hour": 15,
            "an hour": 60,
            "an hour and a half": 90,
            "two hours": 120,
            "three quarters of an hour": 45,
        }
        if self.rng.random() < 0.25:
            text = self.rng.choice(list(fixed))
            return {"duration": text, "DURATION": f"{fixed[text]} min"}
        text, value = self.number(2, 59)
        return {"duration": f"{text} minutes", "DURATION": f"{value} min"}

    def level(self):
        fixed = {"half": 50, "a quarter": 25, "three quarters": 75}
        if self.rng.random() < 0.25:
            text = self.rng.choice(list(fixed))
            return {"level": text, "LEVEL": f"{fixed[text]}%"}
        value = self.rng.randrange(5, 100, 5)
        return {"level": self.rng.choice([f"{value}%", f"{value} percent"]), "LEVEL": f"{value}%"}

    def degrees(self):
        text, value = self.number(14, 24)
        half = self.rng.random() < 0.2
        text = text if not half else f"{text} and a half" if text in NUMBERS.values() else f"{value}.5"
        value = f"{value}.5" if half else str(value)
        return {
            "degrees": self.rng.choice([f"{text} degrees", f"{text} °C" if text[0].isdigit() else f"{text} degrees"]),
            "DEGREES": f"{value} °C",
        }

    def event(self):
        event = self.word("event")
        article = "an" if event[0] in "aeiou" else "a"
        bare = event.endswith(("practice", "training", "club", "evening", "yoga")) or " with " in event
        return {"event": event if bare else f"{article} {event}", "bare_event": event, "EVENT": event}

    def items(self):
        """One to three things for the shopping list, counted, measured or neither."""
        said, lines = [], []
        for _ in range(self.rng.choice([1, 2, 2, 3])):
            form = self.rng.randrange(3)
            if form == 0 and self.kind != "word":
                text, value = self.number(2, 12)
                thing = self.rng.choice(COUNTED)
                pair = f"{text} {thing}", f"{value} {thing}"
            elif form == 1 and self.kind != "word":
                text, value, things = self.rng.choice(MEASURES)
                thing = self.rng.choice(things)
                pair = f"{text} {thing}", f"{value} {thing}"
            else:
                thing = self.word("stock")
                pair = thing, thing
            if not any(thing in line for line in lines):
                said.append(pair[0])
                lines.append(pair[1])
        text = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
        return {"items": text, "ITEMS": ", ".join(lines)}

    def said(self, table, fields):
        """A phrase with its slots filled in. One that begins in lower case is an order, which may be put politely."""
        phrase = self.phrase(table)
        order = phrase[0].islower()
        text = phrase.format(**fields)
        if order:
            wrapper = self.rng.choice(WRAPPERS)
            text = wrapper.format(order=text, Order=text[0].upper() + text[1:])
            if wrapper == "{order}":
                return text
        return text[0].upper() + text[1:]

    def conversation(self):
        """The turns, user and assistant in alternation."""
        tool = self.tool = self.rng.choices(list(SHARES), SHARES.values())[0]
        slots, command = TOOLS[tool], COMMANDS[tool]
        fields = {key: value for name in slots for key, value in self.slot(name).items()}
        turns = self.rng.choice(TURNS)
        asked = list(VAGUE.get(tool, {}))
        fixed = [name for name in slots if name in FIXES]
        talk = []
        if turns > 1 and asked and self.rng.random() < 0.5:
            name = self.rng.choice(asked)
            talk += [self.said(VAGUE[tool][name], fields), ASKS[name]]
            talk += [self.said(ANSWERS[name], fields), command.format(**fields)]
        else:
            talk += [self.said(PHRASES[tool], fields), command.format(**fields)]
        while len(talk) < 2 * turns and fixed:
            if tool in NEVER_MIND and self.rng.random() < 0.2:
                talk += [self.said(MISTAKES, fields), NEVER_MIND[tool].format(**fields)]
                break
            name = self.rng.choice(fixed)
            new = self.slot(name)
            if any(part in talk[-1] for part in new[name.upper()].split(", ")):
                continue  # it changes nothing, or in part
            fields |= new
            talk += [self.said(FIXES[name], fields), command.format(**fields)]
        return talk


def plain(text):
    return " ".join(re.findall(r"[\w%°:.]+", text.lower()))


def build():
    """Rows of both sets. Deterministic: nothing but the seed and the words decides."""
    rng = random.Random(SEED)
    seen, rows = set(), collections.defaultdict(list)
    for kind, wanted in [("train", TRAIN), *EVAL.items()]:
        draw = Draw(rng, kind)
        while len(rows[kind]) < wanted:
            talk = draw.conversation()
            lines = [line for line in talk[1::2] if not line.startswith("ask:")]
            key = " / ".join(plain(text) for text in talk[::2])
            fits = held_out(lines[-1]) if kind != "train" else not any(map(held_out, lines))
            if kind == "word" and not any(word in lines[-1] for _, new in WORDS.values() for word in new):
                continue
            if not fits or key in seen or (kind != "train" and lines[-1] in seen):
                continue
            seen |= {key, lines[-1]}
            roles = ["user", "assistant"] * (len(talk) // 2)
            messages = [{"role": "system", "content": SYSTEM}]
            messages += [{"role": role, "content": text} for role, text in zip(roles, talk)]
            rows[kind].append({"messages": messages, "tool": lines[-1].split(":")[0]})
            if kind != "train":
                rows[kind][-1]["kind"] = kind
    evaluation = [row for kind in EVAL for row in rows[kind]]
    rng.shuffle(evaluation)
    return rows["train"], evaluation


def broken_rules(train, evaluation):
    """What is wrong with the rows, a line for each; empty when nothing is."""
    answers = {message["content"] for row in train for message in row["messages"] if message["role"] == "assistant"}
    users = [
        " / ".join(plain(m["content"]) for m in row["messages"] if m["role"] == "user") for row in train + evaluation
    ]
    for text, count in collections.Counter(users).items():
        if count > 1:
            yield f"said {count} times: {text}"
    wanted = collections.Counter(row["messages"][-1]["content"] for row in evaluation)
    yield from (f"asked for {count} times in evaluation: {line}" for line, count in wanted.items() if count > 1)
    for row in evaluation:
        if row["messages"][-1]["content"] in answers:
            yield f"answer is in train: {row['messages'][-1]['content']}"
    for row in train + evaluation:
        for message in row["messages"]:
            text = message["content"]
            if text != text.strip() or "  " in text or "{" in text or len(text) > 140:
                yield f"not one clean line of at most 140 characters: {text}"
            if message["role"] == "assistant" and not re.fullmatch(r"[a-z]+: [^;\n]+(; [^;\n]+)?", text):
                yield f"not a command: {text}"


def write(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main():
    train, evaluation = build()
    problems = list(broken_rules(train, evaluation))
    for name, rows in (("train.jsonl", train), ("eval.jsonl", evaluation)):
        if sys.argv[1:] != ["--check"]:
            (HERE / name).write_text(write(rows), encoding="utf-8")
        elif (HERE / name).read_text(encoding="utf-8") != write(rows):
            problems.append(f"{name} is not what build.py writes")
        turns = collections.Counter(len(row["messages"]) // 2 for row in rows)
        tools = collections.Counter(row["tool"] for row in rows)
        print(f"{name}: {len(rows)} rows, turns {dict(sorted(turns.items()))}, tools {dict(tools.most_common())}")
    print("\n".join(problems) or "every rule is kept")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
