"""REST under /v1: one file per noun, errors and retries handled in one place."""
