"""Inference runtimes: one file for each, with one interface."""

from .network import Network
from .open import RUNTIMES, open_network

__all__ = ["RUNTIMES", "Network", "open_network"]
