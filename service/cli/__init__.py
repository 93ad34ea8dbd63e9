"""The subcommands of `topfive`, a file each."""
