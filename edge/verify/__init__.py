"""Key verification, permission queries and rate limiting: pure, from memory, no I/O."""
