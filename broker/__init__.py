"""The broker wing: job spec and messages, the auction, the message bus, and the service that relays between parties."""
