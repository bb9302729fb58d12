"""Limits of what a media file may ask for, so that none takes all memory or all time."""

# The longest speech in seconds: three hours, longer than most films and lectures. All of its
# samples at 16 kHz take 0.7 GB.
MAX_SECONDS = 3 * 3600
# Samples per second. Telephones have 8000, and the highest rate of recorders is 384000. A lower
# rate would multiply the size of a file: a byte of 1 Hz becomes 64000 bytes at 16 kHz.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4000, 384_000
# The largest sample. Full scale is 1, and mixes may exceed it. Larger samples are not scaled at
# all, as integers in a float file, and the AAC encoder fails with much larger ones.
MAX_AMPLITUDE = 1000
# Packets of a video, each of which holds about one frame: eleven hours at 25 frames a second. The
# list of packets then takes 0.4 GB.
MAX_PACKETS = 1_000_000
# Pixels of a frame: 8K. A frame of RGB then takes 0.1 GB.
MAX_PIXELS = 8192 * 4320
# Seconds to wait for a file to open, or for its next packet.
TIMEOUT = 30.0
