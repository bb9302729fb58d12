"""The trainer: `python -m train`.

A program on top of the other rooms: it hears and sees through the stages and the readers that a
render uses, so that the networks learn from what they will be given.
"""
