"""The message bus: an interface, MQTT 5 by aiomqtt, an in-process bus for tests, and the MQTT server as a child
process.

Messages may be lost, come twice or late: what is said is signed and numbered, and whatever must not be lost stands in
a journal, on the chain, or goes over HTTP (threats.md rows 24 to 28).
"""

from __future__ import annotations

from broker.bus.local import LocalBus, LocalHub
from broker.bus.mqtt import MqttBus
from broker.bus.protocol import Bus, Will

__all__ = ["Bus", "LocalBus", "LocalHub", "MqttBus", "Will"]
