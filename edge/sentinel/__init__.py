"""Policies in front of a deployment: compiled once, decided from memory; does no I/O of its own."""
