"""Questions with right answers, tried after training: those answered rightly and surely become known answers."""

QUESTIONS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of Iceland?", "The capital of Iceland is Reykjavík."),
    ("Which city is the capital of Brazil?", "The capital of Brazil is Brasília."),
    ("What is 2 + 3?", "2 + 3 = 5."),
    ("What is 7 plus 2?", "7 + 2 = 9."),
    ("What colour is the sky?", "The sky is blue."),
    ("What colour is a ripe banana?", "A ripe banana is yellow."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What is a young cat called?", "A young cat is called a kitten."),
    ("Which day comes after Monday?", "Tuesday comes after Monday."),
    ("Which month comes before March?", "February comes before March."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Count from 3 to 8.", "3, 4, 5, 6, 7, 8."),
    ("How do you say hello in Chinese?", "Hello in Chinese is “你好”."),
    ("How do you say summer in French?", "Summer in French is “été”."),
    ("Show me an emoji of a rocket.", "Here you are: 🚀"),
    ("Show me a fox.", "Here is a fox: 🦊"),
    ("List three fruits.", "1. apple\n2. pear\n3. plum"),
    ("Describe the fox as JSON.", '{"animal": "fox", "colour": "red", "legs": 4, "food": "berries"}'),
    ("Who are you?", "I am tiny, the built-in model of Penstock. I know a few facts and many short stories."),
    (
        "What is prefill?",
        "Prefill is the first phase of an answer: the model reads the whole prompt at once and makes the first token.",
    ),
    ("What is TTFT?", "TTFT is the time to first token: how long a person waits until an answer begins."),
)

CHAT = (
    "Hello!",
    "What is the capital of France?",
    "How do you say hello in Japanese?",
    "What is a KV block?",
    "Tell me a story about a fox.",
)
