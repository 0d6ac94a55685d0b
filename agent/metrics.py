"""What the agent counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge

registry = CollectorRegistry()

INSTANCES = Gauge("agent_instances", "Instances by status", ["status"], registry=registry)
WANTED = Gauge("agent_instances_wanted", "Instances that there should be", registry=registry)
RESTARTS = Counter("agent_restarts", "Instances started again after a crash", registry=registry)
APPLIED = Gauge("agent_applied_version", "Version of the watch stream that is applied", registry=registry)
CONNECTED = Gauge("agent_watch_connected", "1 while the watch stream is open", registry=registry)
ROWS = Counter("agent_rows", "Rows of the watch stream", ["outcome"], registry=registry)
