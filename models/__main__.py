"""`python -m models`: read a checkpoint of any format, and write its network as .safetensors.

`engine` runs it on pickles, which may be made to take any time or memory to read.
"""

import argparse
import sys
from collections.abc import Sequence

from models import checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    parser.add_argument("network", choices=["generator", "audio-encoder"])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth, .pt or .safetensors")
    parser.add_argument("-o", "--output", metavar="FILE.safetensors", required=True)
    options = parser.parse_args(arguments)
    try:
        network = checkpoint.load(options.checkpoint, options.network.replace("-", "_"))
        checkpoint.save(network, options.output)
    except checkpoint.CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {options.output} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
