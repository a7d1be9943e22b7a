"""The provider wing: the sandbox, bidding, the work machine, and the daemon that lends idle cores."""
