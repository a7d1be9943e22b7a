"""The chain wing: words both parties sign, the ledger's rules, consensus, storage, and the node that serves them."""

__version__ = "0.1.0"
