"""JSON-RPC 2.0: the schema both sides share, and the client. The server is in `chain.node`."""
