"""Operations on APIs and keys: `apis.*`, `keys.*`."""
