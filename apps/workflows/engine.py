"""The public surface of the workflow engine: what apps write workflows with, and start them by.

@step
def greet(run: Run) -> JSON:
    return f"hello {run.input['name']}"

class Greet(Workflow):
    service, key, steps = "greet", "name", (greet,)

start(Greet, {"name": "Ada"})
"""

from apps.workflows.definition import Retry, Run, Step, Terminal, Wait, Workflow, step
from apps.workflows.intake import Finished, IdempotencyConflict, call, cancel, send, start
from apps.workflows.models import State, WorkflowRun
from apps.workflows.payload import JSON, BadPayload, Secret
from apps.workflows.topics import notify

__all__ = [
    "JSON",
    "BadPayload",
    "Finished",
    "IdempotencyConflict",
    "Retry",
    "Run",
    "Secret",
    "State",
    "Step",
    "Terminal",
    "Wait",
    "Workflow",
    "WorkflowRun",
    "call",
    "cancel",
    "notify",
    "send",
    "start",
    "step",
]
