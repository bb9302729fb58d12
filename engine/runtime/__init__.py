"""Inference runtimes: one file for each, with one interface."""

from .network import Network
from .open import PRECISIONS, RUNTIMES, open_network

__all__ = ["PRECISIONS", "RUNTIMES", "Network", "open_network"]
