"""Text of legs: what is said does not depend on where an answer is cut."""

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from penstock_workers.text import LegText, SeamError, Tokens

SAID = "naïve café 日本語 🎉🎈 Größe and the END of it; русский 中文，the mill. "


@pytest.fixture(scope="module")
def tokens(worker_model_dir: Path) -> Tokens:
    return Tokens.load(str(worker_model_dir))


def say(
    tokens: Tokens,
    prompt: list[int],
    ids: list[int],
    stops: tuple[str, ...] = (),
    min_tokens: int = 0,
    cuts: tuple[int, ...] = (),
    chunk: int = 1,
) -> tuple[str, str, int]:
    """(text, stop string, tokens kept) of an answer in legs that end at `cuts`."""
    text, kept = "", 0
    bounds = [0, *sorted(cuts), len(ids)]
    sent = 0
    for start, end in itertools.pairwise(bounds):
        leg = LegText(tokens, prompt, ids[:start], sent, stops, min_tokens)
        for i in range(start, end, chunk):
            part = ids[i : min(i + chunk, end)]
            pushed = leg.push(part)
            kept += pushed.kept
            if pushed.stop:
                return text + leg.take(finished=True), pushed.stop, kept
            text += leg.take()
        last = end == len(ids)
        if last:
            text += leg.take(finished=True)
        sent = leg.chars_sent
        assert sent == len(text)
    return text, "", kept


def naive(tokens: Tokens, prompt: list[int], ids: list[int], stops: tuple[str, ...], min_tokens: int) -> tuple[str, str, int]:
    """Token by token on the whole text: the first token that completes a stop string ends it."""
    leg = LegText(tokens, prompt)
    whole = ""
    for count, token in enumerate(ids, 1):
        before = len(whole)
        leg.push([token])
        whole += leg.take()
        if count <= min_tokens or len(whole) == before:
            continue
        found = []
        for number, stop in enumerate(stops):
            at = whole.find(stop, max(0, before - len(stop) + 1))
            if at >= 0:
                found.append((at + len(stop), number, at, stop))
        if found:
            _, _, at, stop = min(found)
            return whole[:at], stop, count
    return whole, "", len(ids)


def test_text_is_cut_at_every_token_without_a_trace(tokens: Tokens) -> None:
    prompt = tokens.tokenizer.encode("say: ").ids
    ids = tokens.tokenizer.encode(SAID * 2).ids
    whole = say(tokens, prompt, ids)
    assert whole == (SAID * 2, "", len(ids))
    for cut in range(len(ids) + 1):
        assert say(tokens, prompt, ids, cuts=(cut,)) == whole


def test_a_stop_string_across_every_seam_is_found(tokens: Tokens) -> None:
    prompt = tokens.tokenizer.encode("say: ").ids
    ids = tokens.tokenizer.encode(SAID * 2).ids
    for stops in (("END of it",), ("🎈 Gr", "zzz"), ("語", "never"), ("the mill.", "mill")):
        whole = say(tokens, prompt, ids, stops)
        assert whole[1] in stops
        assert whole[0] == SAID[: SAID.find(whole[1])]
        assert whole == naive(tokens, prompt, ids, stops, 0)
        for cut in range(whole[2] + 1):
            assert say(tokens, prompt, ids, stops, cuts=(cut,)) == whole


def test_several_tokens_at_once_stop_as_one_by_one(tokens: Tokens) -> None:
    prompt = tokens.tokenizer.encode("say: ").ids
    ids = tokens.tokenizer.encode(SAID).ids
    for stops in (("END",), ("END of it", "D o"), ("a", "caf")):
        one = say(tokens, prompt, ids, stops)
        assert all(say(tokens, prompt, ids, stops, chunk=n) == one for n in range(2, 12))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_cuts_any_stops_and_any_bytes_give_the_naive_text(tokens: Tokens, data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    said = rng.choices(tokens.tokenizer.encode(SAID).ids, k=40) if rng.random() < 0.5 else rng.choices(range(2, 260), k=40)
    prompt = tokens.tokenizer.encode("the river " * rng.randint(1, 30)).ids
    whole = naive(tokens, prompt, said, (), 0)[0]
    stops = []
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(max(1, len(whole)))
        stops.append(whole[at : at + rng.randint(1, 5)] or "x")
    min_tokens = rng.choice([0, 0, 3, 20])
    cuts = tuple(sorted(rng.sample(range(41), rng.randint(0, 3))))
    want = naive(tokens, prompt, said, tuple(stops), min_tokens)
    cuts = tuple(c for c in cuts if c < want[2])
    assert say(tokens, prompt, said, tuple(stops), min_tokens, cuts, chunk=rng.randint(1, 4)) == want


def test_text_that_may_begin_a_stop_string_waits(tokens: Tokens) -> None:
    ids = tokens.tokenizer.encode("abcdef").ids
    leg = LegText(tokens, [20], stops=("defg",))
    said = []
    for token in ids:
        leg.push([token])
        said.append(leg.take())
    assert "".join(said) == "abc"
    assert leg.take(finished=True) == "def"


def test_a_stop_token_is_no_text_but_counts(tokens: Tokens) -> None:
    ids = tokens.tokenizer.encode("abc").ids
    leg = LegText(tokens, [20])
    assert leg.push(ids, ends_by_token=True).kept == 3
    assert leg.take(finished=True) == "ab"


def test_min_tokens_holds_stop_strings_back(tokens: Tokens) -> None:
    ids = tokens.tokenizer.encode("abcabc").ids
    assert len(ids) == 6
    assert say(tokens, [20], ids, ("b",))[0] == "a"
    assert say(tokens, [20], ids, ("b",), min_tokens=2)[0] == "abca"


def test_a_special_token_has_no_text(tokens: Tokens) -> None:
    assert tokens.special == {0, 1}
    ids = tokens.tokenizer.encode("ab").ids
    assert say(tokens, [20], [ids[0], 1, ids[1]])[0] == "ab"


def test_more_characters_than_the_tokens_have_is_an_error(tokens: Tokens) -> None:
    with pytest.raises(SeamError, match="chars_sent is 3"):
        LegText(tokens, [20], tokens.tokenizer.encode("ab").ids, 3)


def test_a_prompt_that_ends_inside_a_character_is_not_repeated(tokens: Tokens) -> None:
    letter = [i for i in tokens.tokenizer.encode("語").ids]
    if len(letter) == 1:
        pytest.skip("the tokenizer has the character whole")
    prompt = [*tokens.tokenizer.encode("the river ").ids, *letter[:-1]]
    assert say(tokens, prompt, [letter[-1], *tokens.tokenizer.encode("abc").ids])[0] == "語abc"
    assert say(tokens, prompt, tokens.tokenizer.encode("abc").ids)[0] == "abc"


def test_a_prompt_of_any_length_and_of_special_tokens_primes_alike(tokens: Tokens) -> None:
    ids = tokens.tokenizer.encode(SAID).ids
    for prompt in ([], [1], [1] * 40, ids * 30, [*ids, *[1] * 20]):
        assert say(tokens, prompt, ids)[0] == SAID


def test_a_token_s_bytes_are_its_own(tokens: Tokens) -> None:
    ids = tokens.tokenizer.encode(SAID).ids
    assert b"".join(map(tokens.bytes_of, ids)).decode() == SAID
    assert tokens.bytes_of(1) == b"<|end|>"
    assert tokens.bytes_of(10**6) == b""


def test_sentencepiece_bytes_and_spaces_are_spelled() -> None:
    vocab = {"<unk>": 0, "<0xE8>": 1, "<0xAA>": 2, "<0x9E>": 3, "\u2581the": 4, "\u2581mill": 5, "s": 6}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = Tokens(tokenizer)
    assert [tokens.bytes_of(i) for i in (1, 4, 6)] == [b"\xe8", b" the", b"s"]
    assert say(tokens, [4], [5, 6, 1, 2, 3])[0] == " mills語", "a word's space is kept after a prompt"
    for cut in range(5):
        assert say(tokens, [4] * 40, [5, 6, 1, 2, 3], cuts=(cut,))[0] == " mills語"


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
def test_text_and_stops_are_vllm_s(worker_model_dir: Path, tokens: Tokens) -> None:
    """Against vLLM's own detokenizer, on 400 random answers."""
    from types import SimpleNamespace

    from transformers import PreTrainedTokenizerFast
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(worker_model_dir / "tokenizer.json"))
    rng = random.Random(3)
    real = tokens.tokenizer.encode(SAID).ids
    stopped = 0
    for _ in range(400):
        ids = rng.choices(real, k=60) if rng.random() < 0.7 else rng.choices(range(420), k=60)
        prompt = rng.choices(tokens.tokenizer.encode("the river and the mill ").ids, k=rng.randint(1, 60))
        text = naive(tokens, prompt, ids, (), 0)[0]
        at = rng.randrange(max(1, len(text)))
        stops = tuple(text[at : at + rng.randint(1, 4)] or "x" for _ in range(rng.randint(0, 2)))
        min_tokens = rng.choice([0, 10])
        params = SamplingParams(stop=list(stops), min_tokens=min_tokens, max_tokens=100, detokenize=True)
        request = SimpleNamespace(request_id="r", sampling_params=params, prompt_token_ids=prompt)
        detokenizer = FastIncrementalDetokenizer(theirs, request)
        stop, count = None, 0
        while stop is None and count < len(ids):
            stop = detokenizer.update([ids[count]], False)
            count += 1
        stopped += stop is not None
        cut = rng.randrange(count)
        want = (detokenizer.get_next_output_text(True, False), stop or "", count)
        assert say(tokens, prompt, ids, stops, min_tokens, (cut,)) == want
    assert stopped > 100
