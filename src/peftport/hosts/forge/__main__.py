"""``python -m peftport.hosts.forge --out FOLDER``: build the default hosts (see build.py)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peftport.errors import PeftportError
from peftport.hosts.forge.build import DERIVED, build_hosts
from peftport.hosts.packaged import SHIPPED


def main() -> int:
    """Parse the command line, build, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m peftport.hosts.forge", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="folder to fill (default: the shipped weights)"
    )
    parser.add_argument("--only", nargs="+", metavar="HOST", help=f"of {', '.join(DERIVED)}")
    parser.add_argument("--quick", action="store_true", help="a few steps, to check the code")
    parser.add_argument("--threads", type=int, help="of torch")
    given = parser.parse_args()
    try:
        build_hosts(given.out, given.only, quick=given.quick, threads=given.threads)
    except PeftportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
