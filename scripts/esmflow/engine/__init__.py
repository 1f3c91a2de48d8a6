"""The engine: sequences in, representations out, on one device."""
