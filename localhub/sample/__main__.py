"""``python -m localhub.sample FOLDER``: write the sample archive."""

import argparse
import sys
from pathlib import Path

from localhub.sample import SampleError, build_sample


def main() -> None:
    """Build the sample and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m localhub.sample", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a new folder, an empty one, or one with a sample")
    parser.add_argument("--seed", type=int, default=7, help="of everything that is random")
    arguments = parser.parse_args()
    try:
        info = build_sample(arguments.folder, seed=arguments.seed, progress=_show)
    except SampleError as error:
        parser.error(str(error))
    state = "was there already" if info.reused else "written"
    sys.stdout.write(f"\r{info.acquisitions} acquisitions, {info.size_bytes / 1e6:.0f} MB, {state}: {info.folder}\n")


def _show(share: float) -> None:
    sys.stderr.write(f"\r{share:4.0%}")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
