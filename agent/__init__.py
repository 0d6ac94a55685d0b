"""The agent: runs the instances that its region should run, and reports what runs. Speaks HTTP only."""
