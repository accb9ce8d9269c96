"""Reads files that others wrote, and writes files at once or not at all."""
