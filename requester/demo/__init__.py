"""The local multi-agent demo: starts chain, broker, providers and a requester as processes of their own, and tells
what happened.

It imports none of the parts it starts; every number it shows comes from the chain, a receipt or a result.
"""
