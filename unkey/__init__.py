"""The Django project, and what every app shares: ids, time, errors, tenancy, settings.

Importing this package imports neither Django nor Celery, so that the satellites and the CLI may
use the pure modules (`ids`, `clock`, `errors`, `env`, `keyfiles`, `snapshots`).
"""

VERSION = "0.1.0"
"""The release; satellites tell it, so that operators see which of them are old."""
