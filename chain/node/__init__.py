"""A chain node: the engine and the ledger driven over a store, and the JSON-RPC server before them."""
