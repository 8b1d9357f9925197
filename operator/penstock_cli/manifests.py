"""`penstock crd` and `validate`: manifests, without a cluster and without Ray."""

import argparse
import sys
from pathlib import Path

from penstock_cli.output import Usage, say
from penstock_operator.api import ManifestError, load, unsupported


def crd(arguments: argparse.Namespace) -> int:
    from penstock_operator.api.crd import text

    sys.stdout.write(text())
    return 0


def validate(arguments: argparse.Namespace) -> int:
    """By the operator's own rules; what a cluster's operator would not carry out yet is told, and is no fault."""
    try:
        service = load(Path(arguments.file))
    except ManifestError as error:
        text = str(error)
        raise Usage(text if text.startswith(arguments.file) else f"{arguments.file}: {text}") from error
    for refusal in unsupported(service.spec, "cluster"):
        say(f"note: {refusal}")
    print(f"{arguments.file}: LLMService {service.metadata.name} is valid")
    return 0
