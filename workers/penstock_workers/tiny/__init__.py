"""The built-in model, `penstock://tiny`: a small Llama that this repository trained on text of its own.

Promise: MODEL_DIR is a complete Hugging Face model directory that any engine loads offline.
`train` makes it anew from nothing; `corpus` is all the text it has seen.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
KNOWN_ANSWERS: Path = Path(__file__).parent / "known_answers.json"
