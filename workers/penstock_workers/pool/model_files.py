"""The files that routers need of a model: tokenizer, chat template, configs.

Promise: each file comes in order, in chunks of at most 1 MiB, and only these names are ever read.
"""

from collections.abc import Iterator
from pathlib import Path

from penstock_proto.v1.worker_pb2 import ModelFile

NAMES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json")
CHUNK = 1 << 20


def read_files(model_dir: str) -> list[tuple[str, bytes]]:
    """The files that the model has."""
    folder = Path(model_dir)
    return [(name, (folder / name).read_bytes()) for name in NAMES if (folder / name).is_file()]


def chunks(files: list[tuple[str, bytes]], model_digest: str) -> Iterator[ModelFile]:
    for name, data in files:
        for start in range(0, max(len(data), 1), CHUNK):
            last = start + CHUNK >= len(data)
            yield ModelFile(name=name, data=data[start : start + CHUNK], last=last, model_digest=model_digest)
