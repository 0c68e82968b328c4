"""The command line, as it runs inside the daemon: commands are plain functions over a session."""
