"""`python -m serve.rpc.protos.build`: make the Python modules of the .proto files anew."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]


def build(out: Path = ROOT) -> None:
    """Write the modules, in folders as in this repository.

    Args:
        out: existing folder.

    Raises:
        RuntimeError: protoc reports an error, on stderr.
    """
    from grpc_tools import protoc

    files = [str(file.relative_to(ROOT)) for file in sorted(FOLDER.glob("*.proto"))]
    options = [f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *options, *files]) != 0:
        raise RuntimeError("protoc failed")


if __name__ == "__main__":
    build()
    sys.exit(0)
