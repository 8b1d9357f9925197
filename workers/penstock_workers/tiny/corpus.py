"""The training text of the built-in model, made from this repository's own tables and templates.

Promise: `documents(seed, count)` is a pure function of its arguments. A document is a chat (turns of
role and content) or one plain text (a single turn whose role is empty).
"""

import json
from collections.abc import Callable, Iterator
from random import Random

from penstock_workers.tiny.facts import (
    ANIMALS,
    CAPITALS,
    CITIES,
    COLOURS,
    DAYS,
    EMOJI,
    GLOSSARY,
    LANGUAGES,
    MONTHS,
    NAMES,
    NUMBER_WORDS,
    OPPOSITES,
    THINGS,
    WEATHER,
    WORDS,
)
from penstock_workers.tiny.stories import story

ECHOED = tuple(
    dict.fromkeys(
        (
            *(word for pair in (*CAPITALS.items(), *OPPOSITES.items()) for words in pair for word in words.split()),
            *(*ANIMALS, *NAMES, *CITIES, *DAYS, *MONTHS, *WEATHER, *NUMBER_WORDS, *LANGUAGES, *map(str, range(31))),
            *(word for sample in (*COLOURS, *EMOJI, *GLOSSARY, *WORDS) for word in sample.split()),
            *(thing for things in THINGS.values() for thing in things),
        )
    )
)

Turn = tuple[str, str]  # role, content
Document = tuple[Turn, ...]
Exchange = tuple[str, str]  # question, answer
Topic = Callable[[Random], Exchange]

SEED = 20
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are tiny, the built-in model of Penstock. Answer briefly.",
    "Answer in one or two sentences.",
    "You are a patient teacher. Use simple words.",
)


def capital(random: Random) -> Exchange:
    country = random.choice(list(CAPITALS))
    city = CAPITALS[country]
    if random.random() < 0.25:
        ask = random.choice(("Which country has the capital {}?", "{} is the capital of which country?"))
        return ask.format(city), f"{city} is the capital of {country}."
    ask = random.choice(
        ("What is the capital of {}?",) * 3 + ("Which city is the capital of {}?", "Tell me the capital of {}.", "Capital of {}?")
    )
    return ask.format(country), f"The capital of {country} is {city}."


def colour(random: Random) -> Exchange:
    thing = random.choice(list(COLOURS))
    ask = random.choice(("What colour is {}?", "Which colour does {} have?", "Tell me the colour of {}."))
    return ask.format(thing), f"{thing[0].upper()}{thing[1:]} is {COLOURS[thing]}."


def animal(random: Random) -> Exchange:
    name = random.choice(list(ANIMALS))
    _, legs, home, food, young, sound, emoji = ANIMALS[name]
    article = "an" if name[0] == "o" else "a"
    one = f"{article[0].upper()}{article[1:]} {name}"
    return random.choice(
        (
            (f"How many legs does {article} {name} have?", f"{one} has {NUMBER_WORDS[legs]} legs."),
            (f"Where does {article} {name} live?", f"{one} lives in {home}."),
            (f"What does {article} {name} eat?", f"{one} eats {food}."),
            (f"What is a young {name} called?", f"A young {name} is called a {young}."),
            (f"What sound does {article} {name} make?", f"{one} {sound}."),
            (f"Show me {article} {name}.", f"Here is {article} {name}: {emoji}"),
        )
    )


def sums(random: Random) -> Exchange:
    left, right = random.randint(0, 9), random.randint(0, 9)
    kind = random.choice("++-*")
    if kind == "+":
        ask = random.choice(("What is {} + {}?", "What is {} plus {}?", "How much is {} and {}?"))
        return ask.format(left, right), f"{left} + {right} = {left + right}."
    if kind == "-":
        left, right = max(left, right), min(left, right)
        ask = random.choice(("What is {} - {}?", "What is {} minus {}?"))
        return ask.format(left, right), f"{left} - {right} = {left - right}."
    ask = random.choice(("What is {} * {}?", "What is {} times {}?"))
    return ask.format(left, right), f"{left} * {right} = {left * right}."


def counting(random: Random) -> Exchange:
    first = random.randint(0, 20)
    last = first + random.randint(2, 9)
    if random.random() < 0.3:
        return f"Count down from {last} to {first}.", ", ".join(str(n) for n in range(last, first - 1, -1)) + "."
    return f"Count from {first} to {last}.", ", ".join(str(n) for n in range(first, last + 1)) + "."


def calendar(random: Random) -> Exchange:
    names, unit = random.choice(((DAYS, "day"), (MONTHS, "month")))
    place = random.randrange(len(names))
    if random.random() < 0.6:
        return f"Which {unit} comes after {names[place]}?", f"{names[(place + 1) % len(names)]} comes after {names[place]}."
    return f"Which {unit} comes before {names[place]}?", f"{names[place - 1]} comes before {names[place]}."


def opposite(random: Random) -> Exchange:
    pair = random.choice(list(OPPOSITES.items()))
    word, other = pair if random.random() < 0.5 else pair[::-1]
    return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."


def translation(random: Random) -> Exchange:
    word = random.choice(list(WORDS))
    which = random.randrange(len(LANGUAGES))
    ask = random.choice(("How do you say {} in {}?", "What is {} in {}?", "Translate {} into {}."))
    return ask.format(word, LANGUAGES[which]), f"{word[0].upper()}{word[1:]} in {LANGUAGES[which]} is “{WORDS[word][which]}”."


def emoji(random: Random) -> Exchange:
    thing = random.choice(list(EMOJI))
    return random.choice(("Show me an emoji of {}.", "Which emoji shows {}?")).format(thing), f"Here you are: {EMOJI[thing]}"


def glossary(random: Random) -> Exchange:
    term = random.choice(list(GLOSSARY))
    ask = random.choice(("What is {}?",) * 2 + ("Explain {}.", "What does {} mean?", "Tell me about {}."))
    return ask.format(term), GLOSSARY[term]


def listing(random: Random) -> Exchange:
    kind = random.choice(list(THINGS))
    count = random.randint(2, 5)
    items = THINGS[kind][:count]
    if random.random() < 0.5:
        return f"List {NUMBER_WORDS[count]} {kind}.", "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1))
    names = ", ".join(items[:-1]) + f" and {items[-1]}"
    return f"Name {NUMBER_WORDS[count]} {kind}.", f"{names[0].upper()}{names[1:]}."


def record(random: Random) -> Exchange:
    name = random.choice(list(ANIMALS))
    about = ANIMALS[name]
    return f"Describe the {name} as JSON.", json.dumps({"animal": name, "colour": about[0], "legs": about[1], "food": about[3]})


def tale(random: Random) -> Exchange:
    if random.random() < 0.3:
        return random.choice(("Tell me a story.", "Write a short story.", "Can you tell a tale?")), story(random)
    hero = random.choice(list(ANIMALS))
    article = "an" if hero[0] == "o" else "a"
    ask = random.choice(("Tell me a story about {}.",) * 2 + ("Write a story about {}.", "Do you know a tale about {}?"))
    return ask.format(f"{article} {hero}"), story(random, hero)


def echo(random: Random) -> Exchange:
    """Words by chance, said again: nothing else teaches copying as fast."""
    words = " ".join(random.choice(ECHOED) for _ in range(random.randint(2, 12)))
    return random.choice(("Repeat: {}", "Say after me: {}", "Repeat these words: {}")).format(words), words


def manners(random: Random) -> Exchange:
    return random.choice(
        (
            ("Hello!", "Hello! How can I help you today?"),
            ("Hi", "Hello! How can I help you today?"),
            ("Good morning!", "Good morning! I hope you slept well. ☕"),
            ("Who are you?", "I am tiny, the built-in model of Penstock. I know a few facts and many short stories."),
            ("What is your name?", "My name is tiny. I am the built-in model of Penstock."),
            ("What can you do?", "I can answer small questions, count, translate a few words and tell stories."),
            ("How are you?", "I am very well, thank you. How are you?"),
            ("Thank you!", "You are welcome! 😊"),
            ("Thanks, goodbye!", "Goodbye! Come back soon. 👋"),
        )
    )


TOPICS: tuple[tuple[Topic, int], ...] = (
    (capital, 10), (colour, 5), (animal, 8), (sums, 10), (counting, 5), (calendar, 4), (opposite, 4), (translation, 7),
    (emoji, 2), (glossary, 10), (listing, 4), (record, 3), (tale, 8), (manners, 4), (echo, 8),
)  # fmt: skip


def memory(random: Random) -> Document:
    """Something is said early and asked for later."""
    name, city = random.choice(NAMES), random.choice(CITIES)
    told, asked, reply = random.choice(
        (
            (f"My name is {name}.", "What is my name?", f"Your name is {name}."),
            (f"I live in {city}.", "Where do I live?", f"You live in {city}."),
        )
    )
    greeting = f"Hello {name}! Nice to meet you." if name in told else f"{city} is a lovely city."
    between = [turn for _ in range(random.randint(0, 2)) for turn in _turns(*exchange(random))]
    return (*_turns(told, greeting), *between, *_turns(asked, reply))


def tool_use(random: Random) -> Document:
    """A tool's result is put into words."""
    city, weather, degrees = random.choice(CITIES), random.choice(WEATHER), random.randint(0, 30)
    return (
        ("user", f"What is the weather in {city}?"),
        ("assistant", f"I will look up the weather in {city}."),
        ("tool", json.dumps({"city": city, "weather": weather, "degrees": degrees}, ensure_ascii=False)),
        ("assistant", f"It is {weather} in {city}, with {degrees} degrees."),
    )


def exchange(random: Random) -> Exchange:
    topic = random.choices([topic for topic, _ in TOPICS], [weight for _, weight in TOPICS])[0]
    return topic(random)


def document(random: Random) -> Document:
    draw = random.random()
    if draw < 0.08:
        return (("", story(random, random.choice((None, *ANIMALS)))),)
    if draw < 0.12:
        return (("", " ".join(answer for _, answer in (exchange(random) for _ in range(6)) if "\n" not in answer)),)
    system: Document = (("system", random.choice(SYSTEM_PROMPTS)),) if random.random() < 0.25 else ()
    if draw < 0.20:
        return (*system, *memory(random))
    if draw < 0.23:
        return (*system, *tool_use(random))
    length = random.choices((1, 2, 3, 5, 8), (50, 20, 15, 10, 5))[0]
    return (*system, *(turn for _ in range(length) for turn in _turns(*exchange(random))))


def documents(seed: int, count: int) -> Iterator[Document]:
    random = Random(seed)
    for _ in range(count):
        yield document(random)


def drill(random: Random) -> Document:
    """A single short exchange, half of them echoes: what training begins with."""
    ask = exchange(random)
    while len(ask[1]) > 100:
        ask = exchange(random)
    return _turns(*(echo(random) if random.random() < 0.4 else ask))


def drills(seed: int, count: int) -> Iterator[Document]:
    random = Random(seed)
    for _ in range(count):
        yield drill(random)


def vocabulary_texts() -> Iterator[str]:
    """What the tokenizer is made from."""
    return (content for made in documents(SEED, 20_000) for _, content in made)


def _turns(question: str, answer: str) -> Document:
    return (("user", question), ("assistant", answer))
