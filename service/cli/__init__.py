"""The subcommands of `topfive`, one file each."""
