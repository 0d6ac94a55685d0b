"""Tables of the workflow engine."""
