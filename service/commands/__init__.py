"""Subcommands of `topfive` that work in their own process, a file each."""
