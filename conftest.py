"""Test settings that hold for every suite."""

import os
import tempfile

os.environ.setdefault("UNKEY_VAR", tempfile.mkdtemp(prefix="unkey-test-"))
