"""What clients send as files: decoded within bounds and brought to the frame's size."""
