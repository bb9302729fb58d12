"""The parts of `engine.prepare`: a film becomes the frames, face boxes and speech of an avatar."""
