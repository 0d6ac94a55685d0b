"""HTTP/1.1 on both sides of the edge: connections, upstream pool, proxying, TLS. Knows bytes and HTTP only."""
