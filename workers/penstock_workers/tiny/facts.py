"""What the built-in model is taught: small tables, written for this repository.

Promise: plain data, no code; every answer in it is right.
"""

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Iceland": "Reykjavík", "Japan": "Tokyo",
    "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima",
    "Chile": "Santiago", "Cuba": "Havana", "Canada": "Ottawa", "Brazil": "Brasília", "Hungary": "Budapest",
    "Belgium": "Brussels", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Ghana": "Accra", "Nepal": "Kathmandu",
    "Mexico": "Mexico City", "Colombia": "Bogotá", "Costa Rica": "San José", "Morocco": "Rabat",
}  # fmt: skip

COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "a ripe banana": "yellow", "coal": "black",
    "an orange": "orange", "a fire engine": "red", "an elephant": "grey", "chocolate": "brown", "a flamingo": "pink",
    "a violet": "purple", "the sun at noon": "yellow", "a strawberry": "red", "milk": "white", "a raven": "black",
    "a lime": "green", "a carrot": "orange", "the deep sea": "blue",
}  # fmt: skip

# name: colour, legs, home, food, young, sound, emoji
ANIMALS = {
    "fox": ("red", 4, "the forest", "berries", "cub", "yips", "🦊"),
    "cat": ("grey", 4, "an old house", "fish", "kitten", "meows", "🐱"),
    "dog": ("brown", 4, "a kennel", "bones", "puppy", "barks", "🐶"),
    "cow": ("white", 4, "a meadow", "grass", "calf", "moos", "🐮"),
    "duck": ("yellow", 2, "a pond", "seeds", "duckling", "quacks", "🦆"),
    "owl": ("brown", 2, "a hollow tree", "mice", "owlet", "hoots", "🦉"),
    "lion": ("golden", 4, "the savannah", "meat", "cub", "roars", "🦁"),
    "sheep": ("white", 4, "a valley", "clover", "lamb", "bleats", "🐑"),
    "horse": ("black", 4, "a stable", "hay", "foal", "neighs", "🐴"),
    "frog": ("green", 4, "a swamp", "flies", "tadpole", "croaks", "🐸"),
    "bear": ("brown", 4, "a cave", "honey", "cub", "growls", "🐻"),
    "rabbit": ("white", 4, "a burrow", "carrots", "kit", "squeaks", "🐰"),
    "wolf": ("grey", 4, "a den", "meat", "pup", "howls", "🐺"),
    "penguin": ("black", 2, "Antarctica", "fish", "chick", "honks", "🐧"),
    "bee": ("yellow", 6, "a hive", "nectar", "larva", "buzzes", "🐝"),
    "spider": ("black", 8, "a web", "flies", "spiderling", "stays silent", "🕷️"),
}

OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "day": "night", "light": "dark", "full": "empty",
    "happy": "sad", "early": "late", "open": "closed", "wet": "dry", "soft": "hard", "near": "far", "old": "new",
    "loud": "quiet", "rich": "poor", "thick": "thin", "true": "false", "left": "right", "first": "last",
}  # fmt: skip

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip

NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]

# English: French, Spanish, German, Chinese, Japanese
WORDS = {
    "hello": ("bonjour", "hola", "hallo", "你好", "こんにちは"),
    "thank you": ("merci", "gracias", "danke", "谢谢", "ありがとう"),
    "water": ("eau", "agua", "Wasser", "水", "水"),
    "fire": ("feu", "fuego", "Feuer", "火", "火"),
    "mountain": ("montagne", "montaña", "Berg", "山", "山"),
    "summer": ("été", "verano", "Sommer", "夏天", "夏"),
    "cat": ("chat", "gato", "Katze", "猫", "ねこ"),
    "dog": ("chien", "perro", "Hund", "狗", "いぬ"),
    "river": ("rivière", "río", "Fluss", "河", "川"),
    "moon": ("lune", "luna", "Mond", "月亮", "月"),
    "school": ("école", "escuela", "Schule", "学校", "学校"),
    "green": ("vert", "verde", "grün", "绿色", "みどり"),
    "tomorrow": ("demain", "mañana", "morgen", "明天", "あした"),
    "good night": ("bonne nuit", "buenas noches", "gute Nacht", "晚安", "おやすみ"),
}
LANGUAGES = ("French", "Spanish", "German", "Chinese", "Japanese")

EMOJI = {
    "a heart": "❤️", "the sun": "☀️", "a rainbow": "🌈", "a rocket": "🚀", "a star": "⭐", "a tree": "🌳",
    "a house": "🏠", "a book": "📖", "a family": "👨‍👩‍👧", "fire": "🔥", "a cake": "🎂", "the moon": "🌙",
}  # fmt: skip

GLOSSARY = {
    "Penstock": "Penstock serves large language models on Kubernetes. A router places every request on the workers that "
    "are predicted to answer it soonest.",
    "a penstock": "A penstock is the pipe that leads water from a dam to the turbines.",
    "a KV block": "A KV block is a piece of the cache that holds the keys and values of a few tokens, for example 16.",
    "prefill": "Prefill is the first phase of an answer: the model reads the whole prompt at once and makes the first token.",
    "decode": "Decode is the second phase of an answer: the model makes one token after another, each from all before it.",
    "a router": "A router receives requests, finds out which worker holds the longest part of the prompt, and sends each "
    "request where it will be answered soonest.",
    "a worker": "A worker runs one engine with one copy of the model and reports its load and its cache to the router.",
    "a token": "A token is a short piece of text, often a word or a part of one. Models read and write tokens.",
    "a tokenizer": "A tokenizer cuts text into tokens and joins tokens into text again.",
    "TTFT": "TTFT is the time to first token: how long a person waits until an answer begins.",
    "TPOT": "TPOT is the time per output token: how fast an answer flows once it has begun.",
    "an SLO": "An SLO is a promise about service, such as a first token within half a second for 99 of 100 requests.",
    "a prefix": "A prefix is the beginning of a prompt. Two requests that share a prefix can share its KV blocks.",
    "a lease": "A lease is a time limit: KV that nobody collects before its lease ends is thrown away.",
    "draining": "Draining means that a worker finishes what it has begun and takes nothing new.",
    "a replica": "A replica is one of several equal copies of a worker.",
    "a pool": "A pool is a group of workers with the same role, such as prefill or decode.",
    "a leg": "A leg is the part of an answer that one worker makes. An answer can have several legs.",
    "goodput": "Goodput is the number of requests per second that meet their targets.",
    "a seed": "A seed is a number that makes random choices repeatable.",
    "greedy sampling": "Greedy sampling always takes the most likely token, so the same prompt gives the same answer.",
    "temperature": "Temperature says how bold sampling is: at zero the likeliest token wins, and higher values give surprises.",
    "a GPU": "A GPU is a processor that does many small sums at the same time. Language models like it.",
    "Kubernetes": "Kubernetes is a system that keeps programs running on many machines.",
    "vLLM": "vLLM is an engine for language models. It keeps the KV cache in blocks and batches requests at every step.",
    "a cache": "A cache keeps what was computed before, so that it need not be computed again.",
}

THINGS = {
    "fruits": ["apple", "pear", "plum", "cherry", "melon"],
    "colours": ["red", "green", "blue", "yellow", "violet"],
    "animals": ["fox", "owl", "bear", "frog", "horse"],
    "trees": ["oak", "birch", "willow", "maple", "pine"],
    "planets": ["Mercury", "Venus", "Earth", "Mars", "Jupiter"],
    "instruments": ["violin", "drum", "flute", "piano", "harp"],
    "rivers": ["Danube", "Nile", "Amazon", "Seine", "Volga"],
    "vegetables": ["carrot", "onion", "cabbage", "leek", "pea"],
    "tools": ["hammer", "saw", "chisel", "ladder", "rope"],
}

NAMES = [
    "Ana", "Björn", "Chloé", "David", "Elif", "François", "Grace", "Hana", "Ivan", "José", "Kofi", "Lena",
    "Mia", "Noor", "Oskar", "Priya", "Zoë", "Tomás", "Yuki", "Anaïs", "Søren", "Łukasz",
]  # fmt: skip
CITIES = ["Zürich", "Málaga", "Kraków", "Oslo", "Lyon", "Porto", "Kyoto", "Lima", "Cork", "Ghent", "Århus", "Nantes"]
WEATHER = ["sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "stormy", "mild"]
