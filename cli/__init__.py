"""The command line: parse, call one function of the package, show progress, print."""
