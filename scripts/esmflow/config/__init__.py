"""The config: declared once, and all that follows from the declaration."""
