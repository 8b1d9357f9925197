"""What the fake engine says of itself and of its model's folder.

Promise: two fakes over the same folder with the same block size exchange KV; others do not.
"""

import hashlib
import json
from pathlib import Path

from penstock_workers.config import FakeSettings
from penstock_workers.engine.protocol import EngineInfo

# SHA-256 of the canonical CBOR of vLLM's default seed, as PYTHONHASHSEED unset gives it.
HASH_ROOT = hashlib.sha256(b"\x6evllm-none-hash").digest()
CAPABILITIES = ("resume", "hand_off", "kv_transfer", "logprobs")
_FILES = ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja")


def eos_id(model_dir: str) -> int | None:
    for name in ("generation_config.json", "config.json"):
        path = Path(model_dir) / name
        eos = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        if eos is not None:
            return int(eos[0] if isinstance(eos, list) else eos)
    return None


def engine_info(settings: FakeSettings, model_dir: str, model: str, vocab_size: int, kv_lease_s: float) -> EngineInfo:
    digest = hashlib.sha256(b"fake")
    for name in _FILES:
        path = Path(model_dir) / name
        if path.exists():
            digest.update(name.encode() + path.read_bytes())
    model_digest = digest.hexdigest()
    compat = hashlib.sha256(f"{model_digest} fake {settings.block_size}".encode()).hexdigest()
    return EngineInfo(
        model=model,
        model_dir=model_dir,
        model_digest=model_digest,
        kv_compat=compat,
        shape=f"fake:{settings.base_s}:{settings.prefill_s}:{settings.decode_s}:{settings.context_s}",
        block_size=settings.block_size,
        kv_blocks=settings.kv_blocks,
        max_model_len=min(settings.max_model_len, settings.kv_blocks * settings.block_size),
        vocab_size=vocab_size,
        max_running=settings.max_running,
        max_batched_tokens=settings.max_batched_tokens,
        hash_root=HASH_ROOT,
        kv_lease_s=kv_lease_s,
        capabilities=CAPABILITIES,
    )
