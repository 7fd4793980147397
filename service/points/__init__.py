"""What a world remembers as coloured points: read from its segments, written as files."""
