"""What the edge tells about itself: metrics, and events of requests."""
