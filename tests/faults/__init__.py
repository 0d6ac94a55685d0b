"""The fault harness of the workflow engine: many workers, seeded faults, and a model that checks history."""
