"""What runs inside the sandbox: copied into the runtime image, imports the standard library, msgpack and
`broker.protocol.values` alone.
"""
