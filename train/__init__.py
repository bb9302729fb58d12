"""The trainer: `python -m train`.

It reads speech and frames with the same stages and readers as a render, so that the networks are
trained on exactly the inputs they get later.
"""
