"""The other servers that are measured beside this one, a service for each; all have one recipe and one answer."""
