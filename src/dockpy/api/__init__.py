"""The socket front door: a thin client and the daemon behind it."""
