"""The requester wing: the purchase machine, its store, the client library, the `tally` command, and the local demo."""
