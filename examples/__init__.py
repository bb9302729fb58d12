"""The demo avatar: a drawn person, and the speech to drive it with."""
