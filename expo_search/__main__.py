"""`python -m expo_search` is `expo-search`."""

from expo_search.cli.main import main

main()
