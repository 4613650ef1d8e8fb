"""The command line: parses, calls, prints. May import everything."""
