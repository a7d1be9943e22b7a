"""Figures of the whole and of its parts: `make bench`, `make bench ONLY=name`, `make bench JSON=1`."""
