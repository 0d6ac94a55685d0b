"""How the admin writes dates: ISO 8601, to the second."""
