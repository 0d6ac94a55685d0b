"""The `unkey` command: deploys folders and looks after what runs. Speaks HTTP, imports no Django."""

VERSION = "0.1.0"
