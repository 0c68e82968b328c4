"""Addresses, links, names and the firewall of containers."""
