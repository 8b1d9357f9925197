"""Short stories by templates, for the built-in model's training text.

Promise: a story is a function of the random numbers given and of its hero; every sentence is made here.
"""

from collections.abc import Sequence
from random import Random

from penstock_workers.tiny.facts import ANIMALS, CITIES, NAMES, WEATHER

_TEMPERS = ["clever", "shy", "brave", "curious", "lazy", "gentle", "proud", "hungry", "cheerful", "stubborn", "patient", "tiny"]
_PLACES = [
    "the old mill", "the quiet lake", "the edge of the village", "the narrow bridge", "the market square", "the dark tunnel",
    "the lighthouse", "the empty garden", "the top of the tower", "the wooden boat", "the railway station", "the frozen river",
    "the stone well", "the field of sunflowers", "the library", "the small harbour", "the dam above the valley",
]  # fmt: skip
_OBJECTS = [
    "a silver key", "a torn map", "a broken lantern", "a letter without a name", "a basket of apples", "a wooden flute",
    "a glass marble", "a rusty bell", "a red umbrella", "a box of candles", "a golden feather", "a heavy book",
    "a pair of boots", "a jar of honey", "a blue kite", "a clock that had stopped", "a bag of seeds",
]  # fmt: skip
_HELPERS = [
    "an old miller", "a travelling baker", "two noisy children", "a sleepy fisherman", "the postman", "a kind teacher",
    "a lonely shepherd", "the captain of a ship", "a girl with a violin", "a boy on a bicycle", "the night watchman",
]  # fmt: skip
_TIMES = [
    "One morning", "One cold evening", "Late in autumn", "On a bright day in spring", "Just after sunrise",
    "In the middle of the night", "After a long winter", "On the first day of summer", "When the rain had stopped",
]  # fmt: skip
_FINDS = [
    "{time} {who} went to {place} and found {object}.",
    "{time} {who} walked past {place}, where {object} lay in the dust.",
    "{time} {who} saw something shine near {place}. It was {object}.",
    "{time} the wind blew {object} right in front of {who}, close to {place}.",
]
_MEETINGS = [
    'There {helper} was waiting. "Have you seen what I lost?" the stranger asked.',
    "On the way home {who} met {helper}, who looked very tired.",
    '"Is this yours?" {who} asked {helper}. The answer was a long silence, then a nod.',
    '{Helper} came along and said: "That belongs to somebody who misses it."',
    "Nobody was there except {helper}, and {helper} could not stop laughing.",
]
_TROUBLES = [
    "But the path was {weather} and the bridge had been washed away.",
    "Then a storm came over the hills, and all the lights went out.",
    "It was getting dark, and the last boat had already left.",
    "A wall of thorns stood in the way, higher than a house.",
    "The door was locked, and the key lay at the bottom of the well.",
    "Suddenly the ground shook, and stones rolled down from the mountain.",
]
_TURNS = [
    "So they built a small raft from branches and crossed the water together.",
    "They lit a fire, told each other old tales, and waited for the morning.",
    '"We should ask the owl," said {who}, and the owl knew a secret way.',
    "{Who} had an idea: if everyone pulled at the rope, the stone would move.",
    "They counted to three, held hands, and jumped.",
    "Step by step they followed the sound of the bells until they saw a light.",
]
_ENDS = [
    "From that day on they were friends, and every year they met again at {place}.",
    "In the end {object} went back to its owner, and {who} got a warm supper.",
    "That night {who} slept better than ever before.",
    "And if you walk past {place} today, you can still hear them sing.",
    "{Who} never forgot that day, and neither did {helper}.",
    "People in the village still tell this story when the evenings grow long.",
]
_MORALS = [
    "A small kindness goes a long way.", "Those who share have more.", "Patience opens doors that strength cannot.",
    "It is good to ask for help.", "Even the smallest can be brave.", "What you give comes back.",
]  # fmt: skip


def _pick(random: Random, options: Sequence[str]) -> str:
    return options[int(random.random() * len(options))]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def story(random: Random, hero: str | None = None) -> str:
    """A story of five to nine sentences. The hero is an animal or, if None, somebody with a name."""
    if hero is None:
        who = _pick(random, NAMES)
        opening = f"{who} lived in {_pick(random, CITIES)} and was very {_pick(random, _TEMPERS)}."
    else:
        colour, _, home, food, _, _, _ = ANIMALS[hero]
        who = f"the {hero}"
        temper = _pick(random, _TEMPERS)
        article = "an" if temper[0] in "aeiou" else "a"
        opening = f"Once upon a time there was {article} {temper} {colour} {hero} who lived in {home} and loved {food}."
        opening = (
            opening.replace(f"{article} {temper} {colour}", f"{article} {temper}, {colour}") if random.random() < 0.3 else opening
        )
    helper = _pick(random, _HELPERS)
    words = {
        "who": who,
        "Who": _upper(who),
        "time": _pick(random, _TIMES),
        "place": _pick(random, _PLACES),
        "object": _pick(random, _OBJECTS),
        "helper": helper.replace("an ", "the ", 1).replace("a ", "the ", 1) if helper.startswith(("a ", "an ")) else helper,
        "weather": _pick(random, WEATHER).replace("sunny", "steep").replace("mild", "muddy"),
    }
    words["Helper"] = _upper(helper)
    first = {**words, "helper": helper}
    sentences = [opening, _pick(random, _FINDS).format(**words), _pick(random, _MEETINGS).format(**first)]
    for part in (_TROUBLES, _TURNS):
        if random.random() < 0.75:
            sentences.append(_pick(random, part).format(**words))
    words["object"] = "the " + words["object"].split(" ", 1)[1]
    sentences.append(_pick(random, _ENDS).format(**words))
    if random.random() < 0.5:
        sentences.append(_pick(random, _MORALS))
    cut = 2 + int(random.random() * 3)
    return " ".join(sentences[:cut]) + "\n\n" + " ".join(sentences[cut:]) if random.random() < 0.3 else " ".join(sentences)
