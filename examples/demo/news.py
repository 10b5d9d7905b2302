"""Generate the demo's news articles and highlights, so that the test split shares no invented name with the training.

    python examples/demo/news.py > examples/demo/test.jsonl

An article begins with three sentences without a fact. Then come two or three sentences with facts, scattered among
sentences that no highlight mentions. Every invented name joins a head and a tail ("Vel" + "ford", "copper" +
"kettles"), and each pair belongs to one split. So a model sees all heads and tails in training, but no test pair.
"""

import functools
import json
import random
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "test"]
Length = Literal["brief", "short", "long"]
SEED = 20
TEST_ROWS = 256
LONG_EVERY = 16
FILLERS: dict[Length, tuple[int, int]] = {"brief": (0, 2), "short": (3, 10), "long": (58, 66)}

TEMPLATES = Path(__file__).with_name("stories.txt")
TRADES = "Airlines Bank Brothers Energy Foods Foundation Group Holdings Hotels Media Motors Partners Records Rail"
WORDS = {
    "first": (
        "Al An Bas Cel Dor El Fab Gil Hel Is Jor Kat Lor Mar Nad Os Pet Quin Ros Sab Tam Ul Vin Wil Yas Zel Ed Lin Hug "
        "Ter Mel Rob",
        "a an as e el en er ia ica id ie ik in ina is o on or ora us y yn",
    ),
    "last": (
        "Abb Arn Bal Bren Crow Cul Dagg Dun Ell Fair Fenn Gar Grim Had Hart Holl Ing Jarr Kell Kirk Lang Lock Mac Mal "
        "Nor Oak Pem Pres Ram Red Sav Shel Stan Thorn Tull Under Ven Wal Whit Yard Zim Bram Cart Dray Frost Glen Hux "
        "Keat",
        "aker and ard att bury by dale den er ett field gate ham ing ings kin land ler ley low man more ner ock ridge "
        "son stead ter ton well wick worth",
    ),
    "place": (
        "Ash Bel Birch Black Brook Clay Cliff Cop Cor Dar Deep Drum East Elm Falk Far Gold Green Haz High Ivy Ken King "
        "Lake Lam Long Mid Mill Moor New North Pen Pine Port Quarr Raven Rock Rush Salt Sand Silver Stone Summer Sutt "
        "Trent Vale West Wood",
        "beck borough bridge chester cliffe combe cott ferry fold ford haven hurst minster mouth pool side stow thorpe "
        "view wold",
    ),
    "firm": (
        "Aero Agri Astra Axi Cala Cen Digi Dyna Equi Flexi Geo Helio Hydro Lumi Macro Medi Novi Omni Opti Quanta Sola "
        "Tele Terra Veri",
        "core dex gen graph lux mark max net nova plex port quest ric tech tron vance via wave",
    ),
    "item": (
        "antique brass broken cheap copper cotton giant glass golden green heavy leather marble painted plastic purple "
        "rusty silk tiny wooden yellow",
        "baskets bells blankets boots bottles bowls boxes chairs clocks coats curtains drums flags gloves hats jars "
        "kettles keys lamps mirrors pipes plates ropes rugs shirts spoons tables tents toys trays "
        "umbrellas violins",
    ),
    "date": (
        " ".join(map(str, range(1, 29))),
        "January February March April May June July August September October November December",
    ),
    "large": (" ".join(map(str, range(10, 100))), "0 1 2 3 4 5 6 7 8 9"),
    "small": ("2 3 4 5 6 7 8 9", "0 1 2 3 4 5 6 7 8 9"),
}
PIECES = {kind: (heads.split(), tails.split()) for kind, (heads, tails) in WORDS.items()}
SPACED = ("item", "date")


@dataclass(frozen=True)
class Topic:
    """The sentence templates of one subject."""

    name: str
    leads: tuple[str, ...]
    facts: tuple[tuple[tuple[str, str], ...], ...]
    fillers: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """An article, its highlights, and the invented names in the highlights."""

    id: str
    article: str
    highlights: str
    facts: tuple[tuple[str, str], ...]


def owner(head: int, tail: int) -> Split:
    """Return the split of the pair at these positions; one pair in five is kept for testing."""
    return "test" if (head + tail) % 5 == 0 else "train"


def join(kind: str, head: str, tail: str) -> str:
    """Join a head and a tail to one word or two."""
    return head + (" " if kind in SPACED else "") + tail


def inventory(kind: str, split: Split) -> set[str]:
    """Return all names of one kind in a split."""
    heads, tails = PIECES[kind]
    return {join(kind, h, t) for i, h in enumerate(heads) for j, t in enumerate(tails) if owner(i, j) == split}


class Pool:
    """Names of one kind in random order. A head or tail returns only after all others, so names in a story differ."""

    def __init__(self, kind: str, split: Split, rng: random.Random) -> None:
        heads, tails = PIECES[kind]
        self.kind, self.split = kind, split
        self.heads = deque(rng.sample(list(enumerate(heads)), len(heads)))
        self.tails = deque(rng.sample(list(enumerate(tails)), len(tails)))

    def draw(self) -> str:
        """Draw the next name of this kind that belongs to the split."""
        self.heads.rotate(-1)
        i, head = self.heads[-1]
        j, tail = next(pair for pair in self.tails if owner(i, pair[0]) == self.split)
        self.tails.remove((j, tail))
        self.tails.append((j, tail))
        return join(self.kind, head, tail)


class Cast:
    """The invented names of one story, which fill its templates."""

    def __init__(self, split: Split, rng: random.Random) -> None:
        self.rng = rng
        self.pools = {kind: Pool(kind, split, rng) for kind in PIECES}

    def fill(self, *templates: str) -> tuple[list[str], list[tuple[str, str]], str]:
        """Fill all templates with the same names; return the texts, the names with kinds, and the surname of {p}."""
        used: list[tuple[str, str]] = []
        values = {field: self.value(field, used) for field in "pqaboinyd" if f"{{{field}}}" in templates[0]}
        surname = values.get("p", "").rpartition(" ")[2]
        return [template.format(**values) for template in templates], used, surname

    def value(self, field: str, used: list[tuple[str, str]]) -> str:
        """Return a new name for a template field; add its parts to `used`."""
        kinds = {"p": ("first", "last"), "q": ("first", "last"), "a": ("place",), "b": ("place",), "o": ("firm",)}
        single = {"i": ("item",), "n": ("large",), "y": ("small",), "d": ("date",)}
        parts = [(kind, self.pools[kind].draw()) for kind in (kinds | single)[field]]
        used.extend(parts)
        words = [word for _, word in parts]
        return " ".join(words + [self.rng.choice(TRADES.split())] if field == "o" else words)


@functools.cache
def topics() -> tuple[tuple[Topic, ...], tuple[str, ...]]:
    """Read the topics of the template file, and the sentences that may follow one about a person."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in TEMPLATES.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            section = sections.setdefault(line[3:], {})
        elif line and not line.startswith("#"):
            key, _, text = line.partition(" | ")
            section.setdefault(key, []).append(text)
    shared = sections.pop("any")
    return tuple(topic(name, lines, shared["fill"]) for name, lines in sections.items()), tuple(shared["after"])


def topic(name: str, lines: dict[str, list[str]], shared: list[str]) -> Topic:
    """Return one section of the template file as a topic, with the fillers that all topics share."""
    facts = tuple(tuple((text.split(" => ")[0], text.split(" => ")[1]) for text in lines[key]) for key in "123")
    return Topic(name, tuple(lines["lead"]), facts, tuple(lines["fill"] + shared))


def story(split: Split, seed: int, index: int, length: Length = "short") -> Story:
    """Return the story of a split that belongs to this seed, index and length."""
    rng = random.Random(f"{split}-{seed}-{index}-{length}")
    cast = Cast(split, rng)
    about = rng.choice(topics()[0])
    leads = [cast.fill(lead)[0][0] for lead in rng.sample(about.leads, 3)]
    slots = rng.choices([(0, 1, 2), (0, 1), (0, 2)], weights=[8, 1, 1])[0]
    told, lines, facts = [], [], []
    for slot in slots:
        (sentence, line), used, surname = cast.fill(*rng.choice(about.facts[slot]))
        told.append(sentence + followup(surname, rng))
        lines.append(line)
        facts.extend(used)
    fillers = [cast.fill(text)[0][0] for text in some(about.fillers, rng.randint(*FILLERS[length]), rng)]
    article = " ".join(leads + scatter(told, fillers, rng))
    return Story(f"{split}-{index}", article, "\n".join(lines), tuple(facts))


def followup(surname: str, rng: random.Random) -> str:
    """Return a space and a further sentence about the last person, or nothing; both are equally likely."""
    if not surname or rng.random() < 0.5:
        return ""
    return " " + rng.choice(topics()[1]).format(s=surname)


def some(templates: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    """Draw `count` templates; none is repeated before all have been used."""
    rounds = [rng.sample(templates, len(templates)) for _ in range(count // len(templates) + 1)]
    return [text for texts in rounds for text in texts][:count]


def scatter(told: list[str], fillers: list[str], rng: random.Random) -> list[str]:
    """Scatter the sentences with facts among the fillers, in order, but not in the first quarter.

    A prompt keeps the end of a long article, so no fact of the highlights may stand at its start.
    """
    places = sorted(rng.randint(len(fillers) // 4, len(fillers)) for _ in told)
    body = list(fillers)
    for place, sentence in reversed(list(zip(places, told, strict=True))):
        body.insert(place, sentence)
    return body


def test_set() -> Iterator[Story]:
    """Yield the rows of test.jsonl; every sixteenth article is longer than a prompt may be."""
    for index in range(TEST_ROWS):
        yield story("test", SEED, index, "long" if index % LONG_EVERY == LONG_EVERY - 1 else "short")


def row(item: Story) -> str:
    """Return a story as a line of JSON with the columns of CNN/DailyMail."""
    return json.dumps({"id": item.id, "article": item.article, "highlights": item.highlights})


if __name__ == "__main__":
    sys.stdout.writelines(row(item) + "\n" for item in test_set())
