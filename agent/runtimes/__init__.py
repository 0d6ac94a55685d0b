"""What runs instances: each runtime implements `agent.runtimes.base.Runtime`."""
