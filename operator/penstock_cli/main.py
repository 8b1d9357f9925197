"""`penstock`, the command line.

Promise: a subcommand imports only what it needs; errors are one line on stderr; exit code 0 ok, 2 bad
usage or manifest, 1 otherwise.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from penstock_cli.output import Failure, Usage

_NOT_BUILT = {
    "plan": "sizes an LLMService",
    "simulate": "replays a trace against the policies",
    "bench": "puts load on a running service",
}


class _Parser(argparse.ArgumentParser):
    """argparse with its error in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"penstock: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="penstock", description="Serves large language models on Kubernetes, and on this machine.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    up = commands.add_parser("up", help="run an LLMService on this machine")
    up.add_argument("-f", "--file", metavar="FILE", help="the LLMService; default: the built-in one")
    up.add_argument("--http", metavar="HOST:PORT", help="default 127.0.0.1:8000; port 0: a free one")
    up.add_argument("--grpc", metavar="HOST:PORT", help="default 127.0.0.1:9000; port 0: a free one")
    up.add_argument("--reports", metavar="HOST:PORT", help="where workers report; default 127.0.0.1:9001")
    up.add_argument("--detach", action="store_true", help="return once ready; `penstock down` ends it")
    up.set_defaults(run="penstock_cli.up:up")

    down = commands.add_parser("down", help="drain and end a service of this machine")
    down.add_argument("name", nargs="?", metavar="NAME", help="needed where several run")
    down.set_defaults(run="penstock_cli.up:down")

    generate = commands.add_parser("generate", help="stream an answer")
    generate.add_argument("prompt", metavar="PROMPT", help="'-' reads it from stdin")
    generate.add_argument("--chat", action="store_true", help="send PROMPT as a user's chat message")
    generate.add_argument("--max-tokens", type=int, metavar="N")
    generate.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    generate.add_argument("--seed", type=int, metavar="N")
    generate.add_argument("--model", metavar="NAME", help="default: the only one")
    generate.add_argument("--service-class", metavar="CLASS", help="an SLO class of the service")
    generate.add_argument("--timeout", type=float, metavar="SECONDS", help="default: none")
    generate.add_argument("--explain", action="store_true", help="show the placement, predicted and real")
    _add_client_options(generate)
    generate.set_defaults(run="penstock_cli.generate:generate")

    status = commands.add_parser("status", help="workers, load, cache, SLO attainment")
    _add_client_options(status)
    status.set_defaults(run="penstock_cli.status:status")

    validate = commands.add_parser("validate", help="check a manifest")
    validate.add_argument("-f", "--file", metavar="FILE", required=True)
    validate.set_defaults(run="penstock_cli.manifests:validate")

    crd = commands.add_parser("crd", help="print the CustomResourceDefinition")
    crd.set_defaults(run="penstock_cli.manifests:crd")

    router = commands.add_parser("router", help="run a router as containers do")
    router.add_argument("--config", metavar="FILE", required=True)
    router.set_defaults(run="penstock_cli.main:_router")

    operator = commands.add_parser("operator", help="run the Kubernetes operator")
    operator.add_argument("--config", metavar="FILE", help="settings, as the chart writes them; default: none")
    operator.add_argument("--namespace", action="append", default=[], metavar="NAME", help="serve this one; default: all")
    operator.add_argument(
        "--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="health and metrics; default 127.0.0.1:8080"
    )
    operator.set_defaults(run="penstock_cli.main:_operator")

    for name, what in _NOT_BUILT.items():
        commands.add_parser(name, help=f"{what} (not built yet)", add_help=False).set_defaults(run=None)
    return top


def _add_client_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--address", metavar="HOST:PORT", help="default: PENSTOCK_ADDRESS, else the local service")
    command.add_argument("-o", "--output", choices=["text", "json"], default="text")


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in _NOT_BUILT:
            raise Usage(f"{words[0]} is not built yet")
        arguments = parser().parse_args(words)
        return _resolve(arguments.run)(arguments)
    except Usage as error:
        return _tell(error, 2)
    except Failure as error:
        return _tell(error, 1)
    except ModuleNotFoundError as error:
        return _tell(_missing(error), 1)
    except KeyboardInterrupt:
        return 1
    except BrokenPipeError:
        # The reader of stdout is gone; Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _resolve(run: str) -> Callable[[argparse.Namespace], int]:
    module, _, name = run.partition(":")
    found: Callable[[argparse.Namespace], int] = getattr(import_module(module), name)
    return found


def _tell(error: Exception, code: int) -> int:
    print(f"penstock: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _missing(error: ModuleNotFoundError) -> Failure:
    name = error.name or ""
    if name.startswith("penstock_"):
        raise error
    return Failure(f"{name} is not installed; install penstock[workers-cpu] to serve, penstock[router] to route")


def _router(arguments: argparse.Namespace) -> int:
    from penstock_router.main import main as run_router

    return run_router(["--config", arguments.config])


def _operator(arguments: argparse.Namespace) -> int:
    from penstock_operator.operate import operate

    return operate(Path(arguments.config) if arguments.config else None, arguments.namespace, arguments.listen)


if __name__ == "__main__":
    sys.exit(main())
