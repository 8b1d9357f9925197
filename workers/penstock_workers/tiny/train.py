"""Makes the built-in model anew: text, tokenizer, weights and known answers.

    python -m penstock_workers.tiny.train --out DIR

Promise: the seed fixes the text, the order and the first weights; one thread, float32. Nothing is
downloaded. Nothing else imports this module, so torch and transformers stay out of the other processes.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from penstock_workers.tiny.corpus import SEED, Document, documents, drills, vocabulary_texts
from penstock_workers.tiny.first_weights import start_as_a_copier
from penstock_workers.tiny.questions import CHAT, QUESTIONS
from penstock_workers.tiny.vocabulary import CONFIG, END_OF_TEXT, TURN_END, TURN_START, write_tokenizer

STEPS = 600
STEP_TOKENS = 2048
SHORT, LONG = 256, 2048  # tokens of a sequence; every eighth step is one long sequence, so that far positions are seen
PEAK_MUON, PEAK_ADAM = 0.02, 2e-3
QUESTION_WEIGHT = 0.1
DRILL = 0.25  # share of the steps

WARM_UP = 20  # steps
SURE = 1.0  # a known answer's tokens lead the runner-up by this many logits: no engine's rounding changes it


class Muon:
    """Momentum whose update is made orthogonal, for weight matrices: a third of the steps that Adam needs.

    float32 on purpose: torch's own runs in bfloat16, which this kind of CPU emulates.
    """

    def __init__(self, weights: Sequence[torch.nn.Parameter]) -> None:
        self._by_shape: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for weight in weights:
            self._by_shape.setdefault(tuple(weight.shape), []).append(weight)
        self._momenta = {weight: torch.zeros_like(weight) for weight in weights}

    def step(self, rate: float) -> None:
        with torch.no_grad():
            for shape, weights in self._by_shape.items():
                updates = []
                for weight in weights:
                    momentum = self._momenta[weight].lerp_(weight.grad, 0.05)
                    updates.append(weight.grad.lerp(momentum, 0.95))
                orthogonal = _orthogonal(torch.stack(updates)) * max(1.0, shape[0] / shape[1]) ** 0.5
                for weight, update in zip(weights, orthogonal, strict=True):
                    weight.mul_(1 - rate * 0.1).add_(update, alpha=-rate)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices."""
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def pieces(document: Document) -> Iterator[str]:
    """The turns as the chat template writes them. Tokens never span two."""
    for role, content in document:
        yield f"{TURN_START}{role}\n{content}{TURN_END}\n" if role else content
    yield END_OF_TEXT


def weighted_tokens(tokenizer: Tokenizer, source: Iterator[Document]) -> Iterator[tuple[int, float]]:
    """Token ids without end, and how much each counts: what users ask is mostly chance and would drown what is right."""
    for document in source:
        roles = (*(role for role, _ in document), "")
        for role, piece in zip(roles, pieces(document), strict=True):
            weight = 1.0 if role in ("assistant", "") else QUESTION_WEIGHT
            for token in tokenizer.encode(piece, add_special_tokens=False).ids:
                yield token, weight


def batches(tokenizer: Tokenizer, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches of token ids and weights, packed from documents without a gap."""
    easy = weighted_tokens(tokenizer, drills(SEED + 1, 1 << 40))
    all_kinds = weighted_tokens(tokenizer, documents(SEED + 2, 1 << 40))
    for step in range(steps):
        drilling = step < steps * DRILL
        length = SHORT if drilling or step % 8 else LONG
        ids, weights = zip(*islice(easy if drilling else all_kinds, STEP_TOKENS), strict=True)
        yield torch.tensor(ids).view(-1, length), torch.tensor(weights).view(-1, length)


def train(model: LlamaForCausalLM, tokenizer: Tokenizer, steps: int) -> None:
    named = [(name, parameter) for name, parameter in model.named_parameters()]
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and ".layers." in name]
    others = [parameter for name, parameter in named if parameter.ndim != 2 or ".layers." not in name]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, PEAK_ADAM, betas=(0.9, 0.95), weight_decay=0.01)
    began, mean = time.monotonic(), math.log(model.config.vocab_size)
    for step, (ids, weights) in enumerate(batches(tokenizer, steps)):
        share = min(1.0, (step + 1) / WARM_UP, 1.2 * (1 - step / steps))
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        counted = weights[:, 1:].flatten()
        loss = (losses * counted).sum() / counted.sum()
        loss.backward()
        muon.step(PEAK_MUON * share)
        adam.param_groups[0]["lr"] = PEAK_ADAM * share
        adam.step()
        model.zero_grad()
        mean += 0.05 * (loss.item() - mean)
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step} loss {mean:.3f} {time.monotonic() - began:.0f} s", flush=True)


def greedy(
    model: LlamaForCausalLM, tokenizer: Tokenizer, messages: Sequence[dict[str, str]], limit: int = 160
) -> tuple[str, float]:
    """The greedy answer to a chat, and by how many logits its least sure token led."""
    turns = tuple((message["role"], message["content"]) for message in messages)
    prompt = "".join(pieces(turns)).removesuffix(END_OF_TEXT) + f"{TURN_START}assistant\n"
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
    end, answer, lead, past = tokenizer.token_to_id(TURN_END), [], math.inf, None
    for _ in range(limit):  # tokens
        with torch.no_grad():
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
        (best, second), (token, _) = (two.tolist() for two in out.logits[0, -1].topk(2))
        lead, past = min(lead, best - second), out.past_key_values
        if token == end:
            break
        answer.append(token)
        ids = torch.tensor([[token]])
    return tokenizer.decode(answer), lead


def known_answers(model: LlamaForCausalLM, tokenizer: Tokenizer) -> dict[str, list[dict[str, str]]]:
    """The questions that this model answers rightly and surely, and a chat with what it says."""
    sure = []
    for question, right in QUESTIONS:
        answer, lead = greedy(model, tokenizer, [{"role": "user", "content": question}])
        print(f"{'ok   ' if answer == right and lead >= SURE else 'WRONG'} {lead:5.1f} {question!r} -> {answer!r}", flush=True)
        if answer == right and lead >= SURE:
            sure.append({"user": question, "answer": answer})
    messages: list[dict[str, str]] = []
    turns = []
    for question in CHAT:
        messages.append({"role": "user", "content": question})
        answer, lead = greedy(model, tokenizer, messages)
        print(f"chat  {lead:5.1f} {question!r} -> {answer!r}", flush=True)
        messages.append({"role": "assistant", "content": answer})
        turns.append({"user": question, "answer": answer})
    return {"greedy": sure, "chat": turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="writes DIR/model/ and DIR/known_answers.json")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    folder = options.out / "model"
    write_tokenizer(vocabulary_texts(), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    shape = {key: value for key, value in CONFIG.items() if key not in ("architectures", "dtype", "initializer_range")}
    model = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=CONFIG["initializer_range"]))
    if options.steps:
        start_as_a_copier(model)
        train(model.train(), tokenizer, options.steps)
    model.eval().bfloat16().float()  # what the answers below are made of is what is stored
    stored = {name: weight.bfloat16().contiguous() for name, weight in model.state_dict().items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    answers = known_answers(model, tokenizer)
    (options.out / "known_answers.json").write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
