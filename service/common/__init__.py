"""Types, errors, settings, metrics and clock that every package of the service uses. Imports no other package of it."""
