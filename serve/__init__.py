"""What speaks to the outside: a registry of avatars, gRPC and HTTP. `python -m serve`."""

import signal
import sys
from itertools import pairwise

# Until the command runs, Ctrl-C ends it at once, without a traceback; see `engine/__init__.py`.
if (
    sys.argv[:1] == ["-m"]
    and {("-m", "serve"), ("-m", "serve.cluster")} & set(pairwise(sys.orig_argv))
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
