"""The event classes by topic, each beside the classes of its payload. Users import them from `trio_agentmail.events`.

To add an event type, add its class and the class of its payload to the module of its topic, with their entries in the
module's union, `Literal` and `__all__`, and re-export the event class from `trio_agentmail` (an import and an entry in
`__all__`). Decoding, encoding, `make_event`, the fake, the emulator and the CLI follow from the class.

A variant of `message.received` is an entry in a `Literal`. The label that the REST API gives such mail belongs in
`_recovery/source.py`, and the permission to see it in `testing/_agentmail/permissions.py`.
"""
