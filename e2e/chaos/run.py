"""`make chaos`: the whole run, one JSON document on standard output, exit 1 on any defect.

The seed is printed first: the same seed gives the same faults and the same requests. `--minutes 60` is the soak: router 0 is
spared, so that its memory has one long life to be judged by.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from chaos.plan import BY_NAME, Fault, Shape, plan
from chaos.scenario import Settings, faulty, run

EVERY_S = 2.0  # a fault on average, where only their number is given
SOAK_MINUTES = 30.0


def faults_of(args: argparse.Namespace, shape: Shape) -> tuple[Fault, ...]:
    """As many of each kind as asked, or as the minutes hold."""
    names = [n for n in (args.only.split(",") if args.only else BY_NAME)]
    each = args.each if args.each is not None else max(20, int(args.minutes * 60 / EVERY_S / len(names)))
    counts = dict.fromkeys(names, each)
    seconds = max(args.minutes * 60, each * len(names) * EVERY_S * 0.5)
    for _ in range(20):
        try:
            return plan(args.seed, seconds, counts, shape)
        except ValueError:
            seconds *= 1.2
    raise SystemExit(f"--each: {each} of each kind do not fit")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="0: of the clock")
    parser.add_argument("--streams", type=int, default=10_000, help="at least so many requests")
    parser.add_argument("--minutes", type=float, default=12.0, help="the faults' time; longer where they do not fit")
    parser.add_argument(
        "--each", type=int, default=None, help="how often each nemesis strikes; default: 20 or what the minutes hold"
    )
    parser.add_argument("--only", default="", help="names of nemeses, with commas")
    parser.add_argument("--concurrency", type=int, default=40, help="streams open at any time")
    parser.add_argument("--logs", type=Path, default=None, help="where the fleet's logs go; default: kept only of a failed run")
    args = parser.parse_args(argv)
    args.seed = args.seed or int(time.time()) & 0xFFFFFF
    unknown = [n for n in args.only.split(",") if n and n not in BY_NAME]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(BY_NAME)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    print(f"chaos: seed {args.seed}", file=sys.stderr, flush=True)
    spared = 0 if args.minutes >= SOAK_MINUTES else None
    faults = faults_of(args, Shape(spared_router=spared))
    folder = args.logs or Path(tempfile.mkdtemp(prefix="penstock-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        args.seed, args.streams, faults, args.concurrency, spared, seconds=args.minutes * 60 if spared is not None else 0.0
    )
    document = uvloop.run(run(settings, folder))
    print(json.dumps(document, indent=1))
    found = faulty(document)
    for line in found:
        print(f"chaos: {line}", file=sys.stderr)
    if args.logs is None and not found:
        shutil.rmtree(folder)
    else:
        (folder / "faults.json").write_text(json.dumps([[f.at_s, f.nemesis, f.target, f.length_s] for f in faults]))
        print(f"chaos: logs in {folder}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
