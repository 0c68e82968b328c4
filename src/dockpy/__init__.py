"""dockpy: a container engine."""
