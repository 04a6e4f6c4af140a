"""What `igd` can do: one module per subcommand, each with `add_parser(subparsers)`."""
