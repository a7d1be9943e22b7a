"""The auction: who fits an order, who wins it, why nobody did, and the machine that takes it to its end (R3, R12).

Pure: time comes in with events, randomness is not needed, and nothing here reads a file or a socket.
"""
