"""Reading a chain without believing any node: a pure verifier and a client that returns only what it verified."""
