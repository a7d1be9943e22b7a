"""Speaking to a broker over HTTP: signatures of requests, which both sides share, and the client of requester and
provider.
"""
