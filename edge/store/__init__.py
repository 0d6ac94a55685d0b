"""The only room of the edge that knows the database: change feed, caches, snapshot on disk, credits."""
