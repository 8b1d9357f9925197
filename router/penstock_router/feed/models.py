"""The models that workers serve: their text side, loaded once per digest.

Promise: a worker is a candidate only when its model's files are loaded; requests for one name are tokenized by the model
of the digest that most workers of that name have.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from ..faults import CallerFault
from ..log import event
from ..request import Request, check_ids
from ..text.chunks import Encoded
from ..text.errors import TemplateRefused, TextRefused
from ..wire.client import ClientConnection
from .fleet import Fleet, Member
from .model_files import ModelFiles, ModelFilesError

log = logging.getLogger("penstock.feed")
RETRY_S = 1.0


class Pending(Protocol):
    """A prompt being tokenized."""

    @property
    def needs_thread(self) -> bool: ...
    def encode(self) -> object: ...


class Text(Protocol):
    """What a model's text side does; `penstock_router.text.model.TextModel` is the real one."""

    @property
    def generation_defaults(self) -> Mapping[str, Any]: ...
    @property
    def cached_bytes(self) -> int: ...
    def open_chat(self, messages: Sequence[Mapping[str, str]]) -> Any: ...
    def open_prompt(self, text: str) -> Any: ...
    def finish(self, pending: Any) -> Encoded: ...
    def encode_ids(self, ids: Any) -> Encoded: ...


Loader = Callable[[Mapping[str, bytes], Member], Text]  # slow; runs in a thread


class Model:
    """A served model; what `check_against_model` asks."""

    __slots__ = ("created_s", "digest", "max_model_len", "name", "text", "vocab_size")

    def __init__(self, name: str, digest: str, text: Text, member: Member, created_s: float) -> None:
        self.name = name
        self.digest = digest
        self.text = text
        self.max_model_len = int(member.hello.capacity.max_model_len)
        self.vocab_size = int(member.hello.capacity.vocab_size)
        self.created_s = created_s

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        return self.text.generation_defaults

    def open(self, request: Request) -> Encoded | Pending:
        """The tokens, or what must be encoded in a thread and then finished. Raises CallerFault."""
        text = self.text
        try:
            if request.token_ids is not None:
                check_ids("token_ids", request.token_ids, self.vocab_size)
                return text.encode_ids(request.token_ids)
            prompt = request.prompt
            pending = text.open_prompt(prompt) if prompt is not None else text.open_chat(request.messages or ())
            if pending.needs_thread:
                return cast(Pending, pending)
            return text.finish(pending)
        except (TemplateRefused, TextRefused) as error:
            raise CallerFault(request.input_field, error.message) from None

    async def encode(self, request: Request, pending: Pending) -> Encoded:
        try:
            await asyncio.to_thread(pending.encode)
            return self.text.finish(pending)
        except (TemplateRefused, TextRefused) as error:
            raise CallerFault(request.input_field, error.message) from None


def key_of(member: Member) -> tuple[str, int, bytes]:
    """Workers of equal keys share one text side: ids and block hashes come out the same."""
    hello = member.hello
    return hello.model_digest, hello.capacity.block_size, hello.hash.root


class Models:
    """Loaded models by key, served ones by name."""

    def __init__(self, fleet: Fleet, files: ModelFiles, load: Loader) -> None:
        self._fleet = fleet
        self._files = files
        self._load = load
        self._texts: dict[tuple[str, int, bytes], asyncio.Future[Text]] = {}
        self._by_name: dict[str, Model] = {}
        self._served: list[Model] = []

    def by_name(self, name: str) -> Model | None:
        return self._by_name.get(name)

    def served(self) -> list[Model]:
        return self._served

    async def prepare(self, member: Member, connection: ClientConnection) -> None:
        """Loads the member's model if nobody has; until it can be, tries again as long as the connection lasts."""
        key = key_of(member)
        while not member.gone and not connection.dead:
            loading = self._texts.get(key)
            try:
                if loading is None:
                    loading = self._texts[key] = asyncio.get_running_loop().create_future()
                    await self._fill(key, loading, member, connection)
                await asyncio.shield(loading)
            except (ModelFilesError, asyncio.CancelledError) as error:
                failed = loading_failed(loading)
                if failed and self._texts.get(key) is loading:
                    del self._texts[key]
                own = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and (not failed or (own is not None and own.cancelling())):
                    raise  # this link's end; what was cancelled otherwise is the load that another link had begun
                await asyncio.sleep(RETRY_S)
                continue
            self._fleet.text_loaded(member)
            return

    async def _fill(
        self, key: tuple[str, int, bytes], loading: "asyncio.Future[Text]", member: Member, connection: ClientConnection
    ) -> None:
        began = time.monotonic()
        try:
            files = await self._files.fetch(member.hello.model_digest, connection)
            text = await asyncio.to_thread(self._load, files, member)
        except asyncio.CancelledError:
            loading.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - files come from a peer: whatever is wrong with them, the router goes on
            event(log, "model files unusable", logging.ERROR, worker=member.name, error=str(error)[:300])
            failure = ModelFilesError(str(error)[:300])
            loading.set_exception(failure)
            loading.exception()
            return
        event(log, "model loaded", model=member.hello.model, digest=key[0][:16], seconds=round(time.monotonic() - began, 3))
        loading.set_result(text)

    def refresh(self) -> None:
        """After members came, went or began to drain: those that drain have no say where others are."""
        votes: dict[str, Counter[tuple[str, int, bytes]]] = {}
        for member in self._fleet.members.values():
            if member.has_text and not member.gone:
                votes.setdefault(member.hello.model, Counter())[key_of(member)] += 0 if member.draining else 1
        by_name = {}
        for name, counted in votes.items():
            known = self._by_name.get(name)
            key = max(counted, key=lambda k: (counted[k], k))
            if known is not None and known.digest == key[0]:
                by_name[name] = known
                continue
            member = next(
                m
                for m in self._fleet.members.values()
                if m.has_text and not m.gone and key_of(m) == key and m.hello.model == name
            )
            created_s = known.created_s if known is not None else time.time()
            by_name[name] = Model(name, key[0], self._texts[key].result(), member, created_s)
        # A model whose workers are all gone stays known: its requests wait for a worker as token ids.
        self._by_name = {**self._by_name, **by_name}
        self._served = list(self._by_name.values())
        self._drop_unused()

    def _drop_unused(self) -> None:
        """A tokenizer and its cache go with the last worker of their model, unless that is what is served."""
        wanted = {key_of(member) for member in self._fleet.members.values() if not member.gone}
        served = {id(model.text) for model in self._served}
        self._texts = {
            key: loading
            for key, loading in self._texts.items()
            if key in wanted or not loading.done() or id(_loaded(loading)) in served
        }

    def cached_bytes(self) -> int:
        """Of tokenized text that is kept for reuse."""
        return sum(text.cached_bytes for text in map(_loaded, self._texts.values()) if text is not None)


def _loaded(loading: "asyncio.Future[Text]") -> Text | None:
    return loading.result() if loading.done() and not loading_failed(loading) else None


def loading_failed(loading: "asyncio.Future[Text] | None") -> bool:
    return loading is not None and loading.done() and (loading.cancelled() or loading.exception() is not None)
