"""Media files in and out: speech, video, images."""
