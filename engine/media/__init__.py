"""Read and write media files: speech, video, images."""
