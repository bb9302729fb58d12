"""The trainer: `python -m train`.

It reads speech and frames with the same stages and readers as a render, so that the networks are
trained on exactly the inputs they get later.
"""

import signal
import sys
from itertools import pairwise

# Until the command runs, Ctrl-C ends it at once, without a traceback; see `engine/__init__.py`.
if (
    sys.argv[:1] == ["-m"]
    and ("-m", "train") in pairwise(sys.orig_argv)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
