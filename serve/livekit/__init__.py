"""LiveKit: an avatar's picture and sound for a room. Needs `livekit-agents`."""
